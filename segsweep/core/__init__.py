"""What every room leans on: errors, files, the session, a run's identity, the machine. Imports no other room."""
