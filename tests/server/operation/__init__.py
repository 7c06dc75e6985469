"""Probes, metrics, the audit log, and how a server is deployed."""
