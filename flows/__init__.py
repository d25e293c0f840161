"""The only place where Prefect is imported: score, select, train, publish and schedule as flows."""

if __name__ != "karat.flows":
    raise ImportError(f"this folder is the package karat.flows; import it by that name, not as {__name__!r}")
