"""Names of the files beside a model's weights that a checkpoint keeps."""

from __future__ import annotations

#: Patterns of the files of processors, which a model with images, video or sound needs.
SIDE_FILES = ("*processor_config.json", "chat_template.*", "additional_chat_templates/*")
