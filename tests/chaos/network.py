"""A small network of real processes, each of which can be killed and started again."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from demo.processes import find_mosquitto, free_port, is_listening, program

SEED = 5
START_TIME = "2026-03-01T00:00:00Z"
START_S = 1772323200.0
INTERVAL_S = 15.0
SIMULATED = "simulated"
DROPPED = ("dropped-a", "dropped-b")


class Network:
    """A broker, a server with a worker, and three stations: one simulates a CL51, two watch a drop folder."""

    def __init__(self, folder: Path, broker: str, simulated_count: int, simulated_per_s: float) -> None:
        self.folder = folder
        self.mqtt_port, self.grpc_port = free_port(), free_port()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands = {"broker": self._broker_command(broker), "server": self._server_command()}
        for station in (SIMULATED, *DROPPED):
            self._commands[station] = self._agent_command(station, simulated_count, simulated_per_s)
        self.names = tuple(self._commands)

    def drop_folder(self, station: str) -> Path:
        return self.folder / f"{station}-drop"

    def buffer(self, station: str) -> Path:
        return self.folder / f"{station}-buffer"

    def start(self, name: str, *flags: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [*self._commands[name], *flags]
            self._running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def kill(self, name: str) -> None:
        """SIGKILL: no farewell."""
        self._running[name].kill()
        self._running[name].wait()

    def stop(self, name: str) -> int:
        """SIGTERM; returns the exit status."""
        self._running[name].send_signal(signal.SIGTERM)
        return self._running[name].wait(30)

    def status(self, name: str) -> int | None:
        return self._running[name].poll()

    def wait_until_listening(self, name: str, port: int) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if is_listening(port):
                return
            time.sleep(0.05)
        raise TimeoutError(f"{name} does not listen:\n{self.log(name)}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def _broker_command(self, kind: str) -> list[str]:
        if kind == "amqtt":
            return [program("fieldpost-server"), "broker", "--address", f"127.0.0.1:{self.mqtt_port}"]
        mosquitto = find_mosquitto()
        if mosquitto is None:
            raise FileNotFoundError("mosquitto is not installed")
        config = self.folder / "mosquitto.conf"
        config.write_text(f"listener {self.mqtt_port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 100000\n")
        return [mosquitto, "-c", str(config)]

    def _server_command(self) -> list[str]:
        stations = self.folder / "stations.toml"
        tables = [(SIMULATED, "cl51"), *((each, "camera") for each in DROPPED)]
        lines = []
        for station, model in tables:
            lines += ["[[stations]]", f'name = "{station}"']
            lines += ["[[stations.instruments]]", 'name = "it"', f'instrument_model = "{model}"']
        stations.write_text("\n".join(lines) + "\n")
        command = [program("fieldpost-server"), "run", "--data-folder", str(self.folder / "server")]
        command += ["--stations-file", str(stations), "--mqtt-url", f"mqtt://127.0.0.1:{self.mqtt_port}"]
        return [*command, "--grpc-address", f"127.0.0.1:{self.grpc_port}", "--workers", "1"]

    def _agent_command(self, station: str, simulated_count: int, simulated_per_s: float) -> list[str]:
        lines = [
            f'station = "{station}"',
            f'broker_urls = ["mqtt://127.0.0.1:{self.mqtt_port}"]',
            f'buffer_folder = "{self.buffer(station)}"',
            "disk_free_alarm_bytes = 0",
            "clock_wait_s = 0",
            "status_interval_s = 5",
            "[[instruments]]",
            'name = "it"',
        ]
        if station == SIMULATED:
            lines += ['source = "simulated"', f"seed = {SEED}", f"start_time = {START_TIME}"]
            lines += [f"interval_s = {INTERVAL_S}", f"count = {simulated_count}"]
            lines += [f"speed_up = {simulated_per_s * INTERVAL_S}"]
        else:
            self.drop_folder(station).mkdir()
            lines += ['source = "folder"', f'folder = "{self.drop_folder(station)}"', 'payload_format = "file"']
            lines += ["poll_interval_s = 0.2", "settle_s = 0.3"]
        path = self.folder / f"{station}.toml"
        path.write_text("\n".join(lines) + "\n")
        command = [program("fieldpost-agent"), "run", "--config", str(path)]
        return [*command, "--exit-when-delivered"] if station == SIMULATED else command
