"""Host side of edgeseal: publisher workstation, manufacturing station and fleet server.

Builds on `edgeseal`'s shared floors and never on `edgeseal.device`.
"""
