"""Programs that try to leave a sandbox, look out of it, or leave something behind. Each prints ``ESCAPED`` if it gets anywhere.

They are executed inside the sandbox under test and nowhere else. What they must never be able to do is the same for every tier.
"""

from __future__ import annotations

PRELUDE = """
import ctypes, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def tried(name, act):
    try:
        found = act()
    except BaseException as error:
        print(name, type(error).__name__)
        return
    if found:
        print("ESCAPED", name, str(found)[:200])
def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    return result >= 0
def readable(path):
    return lambda: open(path, "rb").read(100)
def writable(path):
    return lambda: open(path, "ab").write(b"x")
def reached(kind, family, address):
    def act():
        opened = socket.socket(family, kind)
        opened.settimeout(1)
        opened.connect(address)
        return True
    return act
"""

ATTACKS: dict[str, str] = {
    # -- files of the host
    "host-passwords": 'tried("shadow", readable("/etc/shadow"))',
    "host-home": 'tried("root", lambda: os.listdir("/root")); tried("home", lambda: os.listdir("/home"))',
    "host-files": 'tried("marker", readable(os.environ["HOST_FILE"]))',
    "host-variables": 'tried("environ", lambda: [v for v in os.environ.values() if "host-secret" in v])',
    "parent-variables": 'tried("environ", lambda: b"=" in open(f"/proc/{os.getppid()}/environ", "rb").read())',
    "first-process-variables": 'tried("environ", lambda: b"=" in open("/proc/1/environ", "rb").read())',
    "first-process-memory": 'tried("mem", readable("/proc/1/mem")); tried("maps", readable("/proc/1/maps"))',
    "first-process-descriptors": 'tried("fd", lambda: os.listdir("/proc/1/fd"))',
    "first-process-root": 'tried("root", lambda: os.listdir("/proc/1/root/")); tried("cwd", lambda: os.listdir("/proc/1/cwd/"))',
    "inherited-descriptors": """
for number in range(3, 200):
    try:
        kind = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        continue
    if not kind.startswith("/proc"):
        print("ESCAPED", number, kind)
""",
    "write-the-system": 'tried("usr", writable("/usr/bin/env")); tried("usr2", lambda: open("/usr/new", "w").write("x"))',
    "write-the-root": 'tried("root", lambda: open("/new", "w").write("x")); tried("etc", writable("/etc/hosts"))',
    "write-devices": 'tried("dev", lambda: open("/dev/new", "w").write("x"))',
    "walk-up": 'tried("up", lambda: os.path.exists("/workspace/../../../../root") and os.listdir("/workspace/../../../../root"))',
    "symlink-out": """
os.symlink("/etc/shadow", "link")
tried("link", readable("link"))
os.symlink("/proc/1/root/etc/passwd", "other")
tried("other", readable("other"))
""",
    "hard-link-out": 'tried("hard", lambda: os.link("/usr/bin/env", "/workspace/env") or True)',
    # -- kernel interfaces
    "core-pattern": 'tried("core", writable("/proc/sys/kernel/core_pattern"))',
    "sysctl": 'tried("hostname", writable("/proc/sys/kernel/hostname")); tried("ptrace", writable("/proc/sys/kernel/yama/ptrace_scope"))',
    "sysrq": 'tried("sysrq", writable("/proc/sysrq-trigger"))',
    "kernel-messages": 'tried("kmsg", readable("/dev/kmsg")); tried("syslog", lambda: call(103, 3, ctypes.create_string_buffer(64), 64))',
    "kernel-symbols": 'tried("kallsyms", readable("/proc/kallsyms")); tried("config", readable("/proc/config.gz"))',
    "kernel-memory": 'tried("kcore", readable("/proc/kcore")); tried("mem", readable("/dev/mem")); tried("port", readable("/dev/port"))',
    "sysfs": 'tried("sys", lambda: os.listdir("/sys")); tried("uevent", writable("/sys/kernel/uevent_helper"))',
    "mount": 'tried("mount", lambda: call(165, b"none", b"/workspace", b"tmpfs", 0, None))',
    "unmount": 'tried("umount", lambda: call(166, b"/proc", 2))',
    "new-mounts": 'tried("fsopen", lambda: call(430, b"tmpfs", 0)); tried("open_tree", lambda: call(428, -100, b"/", 1))',
    "pivot": 'tried("pivot", lambda: call(155, b".", b"."))',
    "chroot": 'tried("chroot", lambda: call(161, b"/usr"))',
    "namespaces": 'tried("unshare", lambda: call(272, 0x10000000)); tried("mounts", lambda: call(272, 0x20000))',
    "enter-namespaces": 'tried("setns", lambda: call(308, os.open("/proc/self/ns/net", os.O_RDONLY), 0))',
    "clone-namespaces": 'tried("clone", lambda: call(56, 0x10000000 | 17, 0, 0, 0, 0) )',
    "clone3": 'tried("clone3", lambda: call(435, struct.pack("QQQQQQQQ", 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64))',
    "trace": 'tried("ptrace", lambda: call(101, 16, os.getppid(), 0, 0))',
    "process-memory": 'tried("vm", lambda: call(310, 1, None, 0, None, 0, 0))',
    "keyrings": 'tried("add", lambda: call(248, b"user", b"canary", b"x", 1, -4)); tried("ctl", lambda: call(250, 0, -3, 0))',
    "bpf": 'tried("bpf", lambda: call(321, 0, ctypes.create_string_buffer(128), 128))',
    "performance-events": 'tried("perf", lambda: call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0))',
    "io-uring": 'tried("uring", lambda: call(425, 8, ctypes.create_string_buffer(128)))',
    "userfaultfd": 'tried("uffd", lambda: call(323, 0))',
    "file-handles": 'tried("handle", lambda: call(304, -100, ctypes.create_string_buffer(128), 0))',
    "modules": 'tried("module", lambda: call(175, ctypes.create_string_buffer(64), 64, b"")); tried("fd", lambda: call(313, 0, b"", 0))',
    "reboot": 'tried("reboot", lambda: call(169, 0xfee1dead, 672274793, 0x1234567, 0))',
    "set-time": 'tried("time", lambda: call(227, 0, struct.pack("qq", 1, 0)))',
    "hostname": 'tried("hostname", lambda: call(170, b"evil", 4))',
    "device-nodes": 'tried("mknod", lambda: os.mknod("disk", 0o60600, os.makedev(8, 0)) or True)',
    "setuid-binaries": """
import subprocess
for name in ("su", "mount", "passwd", "newgrp"):
    path = f"/usr/bin/{name}"
    if os.path.exists(path) and os.stat(path).st_mode & 0o4000:
        done = subprocess.run([path, "--version"], capture_output=True)
tried("uid", lambda: os.setuid(0) or True)
tried("own", lambda: (open("s", "w").close(), os.chmod("s", 0o4755), os.geteuid() == 0)[2])
""",
    "capabilities": 'tried("caps", lambda: int([l for l in open("/proc/self/status") if l.startswith("CapEff")][0].split()[1], 16))',
    "privileges-again": 'tried("nnp", lambda: "NoNewPrivs:\\t0" in open("/proc/self/status").read())',
    "no-filter": 'tried("seccomp", lambda: "Seccomp:\\t0" in open("/proc/self/status").read())',
    "cgroups": 'tried("cgroup", lambda: os.listdir("/sys/fs/cgroup")); tried("release", writable("/sys/fs/cgroup/memory/release_agent"))',
    "priorities": 'tried("nice", lambda: os.nice(-10) or True); tried("rt", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)) or True)',
    "limits-up": 'import resource\ntried("nofile", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100000, 100000)) or True)',
    "terminal-input": "import fcntl\ntried('sti', lambda: fcntl.ioctl(0, 0x5412, b'x') or True)",
    # -- other processes
    "signals": 'import signal\ntried("kill", lambda: [os.kill(pid, 9) for pid in range(2, 400) if pid not in (os.getpid(), os.getppid())] and False)\ntried("first", lambda: os.kill(1, 9) or "sent" if False else False)',
    "other-processes": 'tried("pids", lambda: [p for p in os.listdir("/proc") if p.isdigit() and int(p) not in (1, os.getpid(), os.getppid())])',
    "shared-memory": """
libc.shmget.restype = ctypes.c_int
tried("shm", lambda: [key for key in range(0x5000, 0x5010) if libc.shmget(key, 0, 0) >= 0])
tried("posix", lambda: [n for n in os.listdir("/dev/shm") if n != ".tmp"])
""",
    # -- the network
    "metadata": 'tried("metadata", reached(socket.SOCK_STREAM, socket.AF_INET, ("169.254.169.254", 80)))',
    "host-loopback": 'tried("port", reached(socket.SOCK_STREAM, socket.AF_INET, ("127.0.0.1", int(os.environ["HOST_PORT"]))))',
    "internet": 'tried("tcp", reached(socket.SOCK_STREAM, socket.AF_INET, ("1.1.1.1", 53))); tried("six", reached(socket.SOCK_STREAM, socket.AF_INET6, ("2606:4700:4700::1111", 53)))',
    "name-service": 'tried("dns", lambda: socket.gethostbyname("example.com")); tried("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("8.8.8.8", 53)))',
    "raw-sockets": 'tried("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)); tried("packet", lambda: socket.socket(17, socket.SOCK_RAW, 3))',
    "virtual-machine-sockets": 'tried("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))',
    "netlink": 'tried("netlink", lambda: socket.socket(16, socket.SOCK_RAW, 0))',
    "kernel-crypto": 'tried("alg", lambda: socket.socket(38, socket.SOCK_SEQPACKET, 0))',
    "abstract-sockets": 'tried("abstract", reached(socket.SOCK_STREAM, socket.AF_UNIX, "\\0" + os.environ["HOST_ABSTRACT"]))',
    "interfaces": 'tried("up", lambda: [name for _, name in socket.if_nameindex() if name != "lo"])',
    # -- names
    "huge-names": 'tried("name", lambda: open("x" * 5_000, "w")); tried("deep", lambda: os.makedirs("/".join(["d" * 200] * 40)) and False)',
    "strange-names": 'open("-rf *;\\n\\x1b[2J", "w").close(); open(b"\\xff\\xfe", "w").close()',
}
