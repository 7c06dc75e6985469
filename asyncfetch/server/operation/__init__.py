"""Probes, metrics, the audit log and what they count."""
