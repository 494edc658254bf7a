"""Numbers of the Linux system calls that the filter names, by architecture. From the kernel's own tables; numbers never change.

Calls up to ``OLD_MAX`` are a closed list, so what is not refused by name is allowed; of newer ones only those in ``NEW`` are.
"""

from __future__ import annotations

REFUSED = (
    "mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "ptrace", "process_vm_readv",
    "process_vm_writev", "bpf", "perf_event_open", "keyctl", "add_key", "request_key", "kexec_load",
    "kexec_file_load", "init_module", "finit_module", "delete_module", "iopl", "ioperm", "reboot",
    "swapon", "swapoff", "sethostname", "setdomainname", "settimeofday", "clock_settime",
    "clock_adjtime", "adjtimex", "acct", "quotactl", "name_to_handle_at", "open_by_handle_at",
    "userfaultfd", "io_setup", "io_submit", "io_destroy", "io_getevents", "io_cancel", "io_pgetevents",
    "lookup_dcookie", "move_pages", "migrate_pages", "mbind", "set_mempolicy", "kcmp", "fanotify_init",
    "fanotify_mark", "syslog", "vhangup", "nfsservctl", "uselib", "ustat", "sysfs", "_sysctl",
    "modify_ldt", "vmsplice", "mknod", "mknodat", "epoll_ctl_old", "epoll_wait_old", "create_module",
    "query_module", "get_kernel_syms", "afs_syscall", "tuxcall", "security", "getpmsg", "putpmsg",
    "vserver",
)  # fmt: skip
NEW = (
    "rseq", "pidfd_send_signal", "pidfd_open", "close_range", "openat2", "faccessat2", "epoll_pwait2",
    "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "process_mrelease",
    "futex_waitv", "cachestat", "fchmodat2", "map_shadow_stack", "futex_wake", "futex_wait",
    "futex_requeue",
)  # fmt: skip
JUDGED = ("clone", "clone3", "socket", "socketpair", "ioctl", "personality")  # by their arguments
OLD_MAX = {"x86_64": 334, "aarch64": 293}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321,
        "perf_event_open": 298, "keyctl": 250, "add_key": 248, "request_key": 249, "kexec_load": 246,
        "kexec_file_load": 320, "init_module": 175, "finit_module": 313, "delete_module": 176, "iopl": 172,
        "ioperm": 173, "reboot": 169, "swapon": 167, "swapoff": 168, "sethostname": 170,
        "setdomainname": 171, "settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305,
        "adjtimex": 159, "acct": 163, "quotactl": 179, "name_to_handle_at": 303, "open_by_handle_at": 304,
        "userfaultfd": 323, "io_setup": 206, "io_submit": 209, "io_destroy": 207, "io_getevents": 208,
        "io_cancel": 210, "io_pgetevents": 333, "lookup_dcookie": 212, "move_pages": 279,
        "migrate_pages": 256, "mbind": 237, "set_mempolicy": 238, "kcmp": 312, "fanotify_init": 300,
        "fanotify_mark": 301, "syslog": 103, "vhangup": 153, "nfsservctl": 180, "uselib": 134, "ustat": 136,
        "sysfs": 139, "_sysctl": 156, "modify_ldt": 154, "vmsplice": 278, "mknod": 133, "mknodat": 259,
        "epoll_ctl_old": 214, "epoll_wait_old": 215, "create_module": 174, "query_module": 178,
        "get_kernel_syms": 177, "afs_syscall": 183, "tuxcall": 184, "security": 185, "getpmsg": 181,
        "putpmsg": 182, "vserver": 236, "rseq": 334, "pidfd_send_signal": 424, "pidfd_open": 434,
        "close_range": 436, "openat2": 437, "faccessat2": 439, "epoll_pwait2": 441,
        "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
        "process_mrelease": 448, "futex_waitv": 449, "cachestat": 451, "fchmodat2": 452,
        "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455, "futex_requeue": 456, "clone": 56,
        "clone3": 435, "socket": 41, "socketpair": 53, "ioctl": 16, "personality": 135,
    },
    "aarch64": {
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280,
        "perf_event_open": 241, "keyctl": 219, "add_key": 217, "request_key": 218, "kexec_load": 104,
        "kexec_file_load": 294, "init_module": 105, "finit_module": 273, "delete_module": 106,
        "reboot": 142, "swapon": 224, "swapoff": 225, "sethostname": 161, "setdomainname": 162,
        "settimeofday": 170, "clock_settime": 112, "clock_adjtime": 266, "adjtimex": 171, "acct": 89,
        "quotactl": 60, "name_to_handle_at": 264, "open_by_handle_at": 265, "userfaultfd": 282,
        "io_setup": 0, "io_submit": 2, "io_destroy": 1, "io_getevents": 4, "io_cancel": 3,
        "io_pgetevents": 292, "lookup_dcookie": 18, "move_pages": 239, "migrate_pages": 238, "mbind": 235,
        "set_mempolicy": 237, "kcmp": 272, "fanotify_init": 262, "fanotify_mark": 263, "syslog": 116,
        "vhangup": 58, "nfsservctl": 42, "vmsplice": 75, "mknodat": 33, "rseq": 293,
        "pidfd_send_signal": 424, "pidfd_open": 434, "close_range": 436, "openat2": 437, "faccessat2": 439,
        "epoll_pwait2": 441, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
        "landlock_restrict_self": 446, "process_mrelease": 448, "futex_waitv": 449, "cachestat": 451,
        "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455,
        "futex_requeue": 456, "clone": 220, "clone3": 435, "socket": 198, "socketpair": 199, "ioctl": 29,
        "personality": 92,
    },
}  # fmt: skip
