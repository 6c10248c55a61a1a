"""The command line. Modules import what is heavy inside their commands: `status` is to be quick."""
