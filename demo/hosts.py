"""`make demo-hosts`: pins across hosts. One directory, mounted by two hosts, and an etcd between them."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from demo.etcd import Etcd, FetchError, program
from demo.stage import Stage, wait_until

PIN_TTL_S = 6
MARGIN_S = 2
MEMBER_TTL_S = 12
COLUMNS = "START,LENGTH,MODE,STATE,COMM,PID"


class Hosts(Stage):
    """`source`, mounted on `a` and on `b` by hosts of these names."""

    mounts = ("a", "b")

    def __init__(self, etcd: Path) -> None:
        super().__init__()
        self.etcd = Etcd(etcd, self.dir)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, value, trace)
        finally:
            self.etcd.close()

    def join(self, host: str) -> bool:
        """Mounts the source as a host of the cluster. False: this machine or user cannot."""
        times = f"cluster_pin_ttl={PIN_TTL_S},cluster_margin={MARGIN_S},cluster_member_ttl={MEMBER_TTL_S}"
        options = (f"cluster={self.etcd.endpoint}", f"cluster_host={host}", times, "break_timeout=5")
        if not self.mount(*options, at=host):
            return False
        wait_until(lambda: self.cluster(host)["state"] == "joined", f"host {host} has not joined the cluster")
        return True

    def status(self, host: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.dir / host / ".pinfs/status").read_text())
        return found

    def cluster(self, host: str) -> dict[str, Any]:
        found: dict[str, Any] = self.status(host)["cluster"]
        return found


def main() -> int:
    try:
        etcd = program()
    except FetchError as why:
        print(f"There is no etcd: {why}\nWith Debian's package etcd-server it needs no network.", file=sys.stderr)
        return 1
    with Hosts(etcd) as hosts:
        hosts.tell(f"Everything happens in {hosts.dir} (tmpfs). 'reader' is demo/reader.py.")
        hosts.etcd.wait_until_healthy()
        hosts.scene(f"One directory, mounted by two hosts, a and b. Between them is an etcd, {hosts.etcd.endpoint}.")
        if not hosts.join("a") or not hosts.join("b"):
            return 1
        shown = hosts.run("pinfs", "cluster", "status", "--table", "b")
        hosts.expect(shown.code == 0 and len(hosts.cluster("b")["members"]) == 2, "each knows of the other")
        for scene in (deny_pin, lease_pin, last_name, host_dies):
            scene(hosts)
        hosts.scene("The end.")
        hosts.umount("a", "--force")
        hosts.umount("b")
        print(f"\n{hosts.failures} things were not as they should be." if hosts.failures else "\nAll as it should be.")
    return 1 if hosts.failures else 0


def deny_pin(hosts: Hosts) -> None:
    hosts.scene("A deny pin at host a: host b cannot take the bytes away.")
    path = hosts.write("a/model.bin")
    size = path.stat().st_size
    reader = hosts.reader("a/model.bin", "--pin", "deny")
    hosts.run("pinfs", "ls", "--table", "-o", COLUMNS, "a/model.bin")
    hosts.expect(hosts.run("truncate", "-s", "0", "b/model.bin").busy, "the truncate at b is refused")
    hosts.expect(path.stat().st_size == size and reader.still_reads(), "and the reader at a goes on")
    reader.stop()
    hosts.until_done("truncate", "-s", "0", "b/model.bin")
    hosts.expect(path.stat().st_size == 0, "when the reader has ended, it succeeds")


def lease_pin(hosts: Hosts) -> None:
    hosts.scene("A lease at host a: its holder is notified of the truncate at host b, and lets go.")
    path = hosts.write("a/model.bin")
    reader = hosts.reader("a/model.bin", "--pin", "lease")
    cut = hosts.run("truncate", "-s", "0", "b/model.bin")
    hosts.expect(
        "released the pin" in reader.line() and reader.ended() == 0, "the reader at a was signalled and let go"
    )
    hosts.expect(cut.code == 0 and path.stat().st_size == 0, f"then the truncate succeeded ({cut.seconds:.2f} seconds)")


def last_name(hosts: Hosts) -> None:
    hosts.scene("unlink at host b, of a file that a program at host a reads: the name goes, the bytes stay.")
    hosts.write("a/model.bin")
    reader = hosts.reader("a/model.bin", "--pin", "deny")
    hosts.expect(hosts.run("rm", "b/model.bin").code == 0, "the unlink at b succeeds")
    hosts.expect(not (hosts.dir / "a/model.bin").exists(), "the name is gone at a as well")
    hosts.expect(reader.still_reads(), "and the reader at a goes on")
    held = hosts.run("ls", "source/.pinfs-cluster/held")
    hosts.expect(len(held.text.split()) == 1, "until it ends, the bytes have a name that b has given them")
    reader.stop()


def host_dies(hosts: Hosts) -> None:
    hosts.scene("kill -9 of host a: its daemon, what would start it anew, and the reader that holds a pin there.")
    hosts.write("a/model.bin")
    reader = hosts.reader("a/model.bin", "--pin", "deny")
    status = hosts.status("a")
    keeper = status["survives"]["keeper_pid"]
    victims = [str(pid) for pid in (keeper, status["pid"], reader.process.pid) if pid]
    hosts.run("kill", "-9", *victims)
    killed = time.monotonic()
    hosts.expect(reader.ended() == -9, "host a is dead")
    hosts.expect(hosts.run("truncate", "-s", "0", "b/model.bin").busy, "b refuses the truncate: a might still live")
    hosts.run("pinfs", "cluster", "status", "--table", "b")
    hosts.tell(f"Its pins end when it has been silent for {PIN_TTL_S} seconds (cluster_pin_ttl).")
    hosts.until_done("truncate", "-s", "0", "b/model.bin")
    took_s = time.monotonic() - killed
    hosts.expect(took_s > PIN_TTL_S - MARGIN_S, f"then the truncate succeeds, {took_s:.1f} seconds after its death")
    hosts.expect(hosts.cluster("b")["state"] == "joined", "host b has been in the cluster all the time")


if __name__ == "__main__":
    sys.exit(main())
