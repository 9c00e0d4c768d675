"""The signed list of models (TUF): checking a publication, signing snapshot and timestamp, and the offline directory.

metadata    names, lifetimes, reading and checking single files      (no I/O)
verify      is this publication allowed on top of that state?        (no I/O; publisher and fleet server alike)
online      snapshot and timestamp                                   (no I/O; fleet server, or an offline directory)
layout      a repository directory: what is published, what is staged
staging     changes to make                     signing   diff, signatures
doctor      dry runs of devices, before somebody is stuck in the field
"""
