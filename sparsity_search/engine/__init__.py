"""The parts that jobs are made of: session, plugins, stages, shipping."""
