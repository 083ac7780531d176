"""The version of the package; nothing else, so that a build reads it without importing torch."""

VERSION = "0.1.0"
