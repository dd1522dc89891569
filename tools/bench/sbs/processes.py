# SPDX-License-Identifier: Apache-2.0
"""Processes of a measurement: all on the same cores (they inherit ours), all gone when the block ends, whatever ended it."""
import ctypes
import os
import pathlib
import signal
import subprocess
import time

PR_SET_PDEATHSIG = 1


class MeasureError(Exception):
    """Why something could not be measured; becomes the reason of a null figure."""


def _die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    def __init__(self, command, log, env=None):
        self.command = [str(c) for c in command]
        self.log = log
        self.started = time.monotonic()
        with open(log, "wb") as out:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env,
                                            start_new_session=True, preexec_fn=_die_with_parent)

    @property
    def pid(self):
        return self.process.pid

    def text(self):
        return self.log.read_text(errors="replace")

    def check(self):
        """Raises with the last words of a process that has ended."""
        if self.process.poll() is not None:
            raise MeasureError(f"{pathlib.Path(self.command[0]).name} ended with status {self.process.returncode}: {last_words(self.text())}")

    def wait_for(self, condition, what, seconds):
        """What `condition` returned when it was first true."""
        deadline = self.started + seconds
        while not (value := condition()):
            self.check()
            if time.monotonic() > deadline:
                raise MeasureError(f"{self.command[0]}: no {what} within {seconds} s: {last_words(self.text())}")
            time.sleep(0.005)
        return value

    def stop(self):
        for how, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
            if self.process.poll() is not None:
                break
            os.killpg(self.pid, how)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()


class Processes:
    """Starts and ends children; logs lie in `folder`."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.children = []
        self.count = 0

    def start(self, *command, env=None):
        self.count += 1
        log = self.folder / f"{self.count:03}-{pathlib.Path(str(command[0])).name}.log"
        child = Child(command, log, env)
        self.children.append(child)
        return child

    def stop(self, *children):
        for child in children:
            child.stop()
            self.children.remove(child)

    def run(self, *command, seconds=600):
        """Standard output of a command that ends by itself."""
        self.count += 1
        name = pathlib.Path(str(command[0])).name
        log = self.folder / f"{self.count:03}-{name}.log"
        with open(log, "wb") as errors:
            process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                                       start_new_session=True, preexec_fn=_die_with_parent)
            try:
                out, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                raise MeasureError(f"{name} took longer than {seconds} s") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        text = out.decode(errors="replace")
        if process.returncode != 0:
            raise MeasureError(f"{name} ended with status {process.returncode}: {last_words(log.read_text(errors='replace') + text)}")
        return text

    def stop_all(self):
        while self.children:
            self.stop(self.children[-1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop_all()


def last_words(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it said nothing"
