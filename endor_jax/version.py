"""The version of this library, as recorded in checkpoints and shown by the command line."""

VERSION = "0.1.0"
