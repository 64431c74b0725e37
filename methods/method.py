"""Public names for plug-in objectives: base class, settings and needs (docs/guides/adding-a-method.md)."""

from methods.common.method import Losses, Method, MethodConfig, Needs, Schedule, Setting

__all__ = ["Losses", "Method", "MethodConfig", "Needs", "Schedule", "Setting"]
