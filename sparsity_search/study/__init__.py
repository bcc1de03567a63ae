"""The search loop and its record: ladders, histories, studies, stores."""
