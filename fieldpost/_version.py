"""The version of Fieldpost: the one place that says it. Read by the build, too."""

__version__ = "0.1.0"
