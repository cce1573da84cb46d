"""The lock files, the installation, and its checks. It is not a part of the installed project."""
