"""What an objective from outside imports: the base class, its settings and what it may ask for
(docs/guides/adding-a-method.md)."""

from methods.common.method import Losses, Method, MethodConfig, Needs, Schedule, Setting

__all__ = ["Losses", "Method", "MethodConfig", "Needs", "Schedule", "Setting"]
