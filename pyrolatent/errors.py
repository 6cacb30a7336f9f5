"""What pyrolatent says when something cannot be done: one line with what was given, what was expected, what to do."""


class InputError(Exception):
    """A declaration, a file or an argument that cannot be right; the message is one line.

    It is no ValueError, since Pyro writes the shapes of all sites under every ValueError raised inside a model.
    """


class TrustError(InputError):
    """A run asks for code from outside the package and the user has not said to trust it."""


class TrainingError(RuntimeError):
    """Training stopped because a number was not finite; the model holds the last good state."""
