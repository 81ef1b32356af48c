"""Measurements that anyone can repeat; README.md has the results, LOG.md what was tried."""
