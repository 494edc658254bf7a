"""Why there are no namespaces on a machine, and how to get them: the kernel's own error says too little."""

from __future__ import annotations

from pathlib import Path

SYSCTLS = {
    "user/max_user_namespaces": ("0", "user namespaces are switched off: `sysctl user.max_user_namespaces=10000`"),
    "kernel/unprivileged_userns_clone": ("0", "user namespaces are for root only: `sysctl kernel.unprivileged_userns_clone=1`"),
    "kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "AppArmor forbids user namespaces to programs without a profile (Ubuntu 23.10 and later): give the Python that runs Perdure "
        "a profile with `userns,`, or `sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
    ),
}  # fmt: skip
REFUSALS = (
    "not permitted",
    "denied",
    "No space left",
    "Invalid argument",
    "Too many users",
)  # what a kernel says that forbids them
CONTAINERS = ("/.dockerenv", "/run/.containerenv")


def why_not(said: str, *, sysctls: Path = Path("/proc/sys"), containers: tuple[str, ...] = CONTAINERS) -> str:
    """What the kernel said, with the likely reason and what to do.

    Args:
        said: the error of whoever tried.
        sysctls: where the kernel's settings are read.
        containers: files that only a container has.
    """
    if not any(words in said for words in REFUSALS):
        return said
    for name, (value, hint) in SYSCTLS.items():
        try:
            if (sysctls / name).read_text().strip() == value:
                return f"{said}; {hint}"
        except OSError:
            continue
    if any(Path(path).exists() for path in containers):
        return (
            f"{said}; this is a container: its engine forbids namespaces. With Docker give `--security-opt seccomp=unconfined "
            "--security-opt systempaths=unconfined`, or run sandboxes on another host (tier `remote`, or `perdure worker --role sandbox`)"
        )
    return said
