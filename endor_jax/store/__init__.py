"""What a checkpoint is, on disk: a directory of parts with a manifest. The only importer of tensorstore."""
