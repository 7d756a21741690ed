"""Pins across hosts: daemons over one shared directory honour each other's pins through etcd (docs/hosts.md)."""
