"""Policies in closed loop: the protocol, a network as a policy, and the noise that all arms share."""
