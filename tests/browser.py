"""Headless Chromium, told what to do through its DevTools protocol over a pair of pipes."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

PROGRAM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = ('--headless=new', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe', '--no-first-run',
         '--disable-dev-shm-usage', '--disable-background-networking', '--disable-component-update')  # fmt: skip
TALLEST = 30_000  # pixels of a screenshot
PATIENCE = 60  # seconds, after which Chromium is ended and the test fails
LOADED = '''new Promise(done => {
    const answer = () => done(SCRIPT);
    document.readyState === 'complete' ? answer() : addEventListener('load', answer);
})'''


class Seen(NamedTuple):
    """What a page did: errors of its console, addresses it asked for, and what a script in it says."""

    errors: list[str]
    requests: list[str]
    answer: Any


class Browser:
    """One page at a time. commands, replies: binary files; messages in them end with a zero byte."""

    def __init__(self, commands: Any, replies: Any):
        self._commands, self._replies, self._number, self._events = commands, replies, 0, []

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': parameters}
        message |= {'sessionId': session} if session else {}
        self._commands.write(json.dumps(message).encode() + b'\0')
        self._commands.flush()
        while (reply := self._next()).get('id') != self._number:
            self._events.append(reply)
        assert 'error' not in reply, reply
        return reply['result']

    def _next(self) -> dict[str, Any]:
        read = bytearray()
        while (byte := self._replies.read(1)) != b'\0':
            assert byte, 'Chromium has ended.'
            read += byte
        return json.loads(read)

    def show(
        self, page: pathlib.Path, width: int, script: str = 'null', scheme: str = 'light',
        image: pathlib.Path | None = None, medium: str = 'screen',
    ) -> Seen:
        """Opens a page in a window so many pixels wide. scheme: light or dark. image: where a screenshot goes.

        medium: screen or print.
        """
        target = self._ask('Target.createTarget', url='about:blank')['targetId']
        session = self._ask('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        self._events.clear()
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self._ask(f'{domain}.enable', session)
        size = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': width < 600}
        self._ask('Emulation.setDeviceMetricsOverride', session, **size)
        features = [{'name': 'prefers-color-scheme', 'value': scheme}]
        self._ask('Emulation.setEmulatedMedia', session, features=features, media=medium)
        self._ask('Page.navigate', session, url=page.resolve().as_uri())
        loaded = LOADED.replace('SCRIPT', script)
        result = self._ask('Runtime.evaluate', session, expression=loaded, returnByValue=True, awaitPromise=True)
        answer = result['result'].get('value')
        if image:
            image.write_bytes(self._screenshot(session, width))
        self._ask('Target.closeTarget', targetId=target)
        return Seen([*self._errors()], self._requests(), answer)

    def _screenshot(self, session: str, width: int) -> bytes:
        height = min(TALLEST, self._ask('Page.getLayoutMetrics', session)['cssContentSize']['height'])
        clip = {'x': 0, 'y': 0, 'width': width, 'height': height, 'scale': 1}
        shot = self._ask('Page.captureScreenshot', session, captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot['data'])

    def _errors(self) -> Iterator[str]:
        for event in self._events:
            what, about = event.get('method'), event.get('params', {})
            logged = what == 'Log.entryAdded' and about['entry']['level'] == 'error'
            said = what == 'Runtime.consoleAPICalled' and about['type'] in ('error', 'assert')
            if logged or said or what == 'Runtime.exceptionThrown':
                yield json.dumps(about)

    def _requests(self) -> list[str]:
        sent = [event['params'] for event in self._events if event.get('method') == 'Network.requestWillBeSent']
        return [about['request']['url'] for about in sent]


@contextlib.contextmanager
def start(folder: pathlib.Path) -> Iterator[Browser]:
    """A Chromium with its profile in a folder; ended afterwards."""
    to_child, from_child = os.pipe(), os.pipe()
    command = f'exec "$@" 3<&{to_child[0]} 4>&{from_child[1]}'
    child = subprocess.Popen(
        ['bash', '-c', command, 'bash', PROGRAM, *FLAGS, f'--user-data-dir={folder}'],
        pass_fds=(to_child[0], from_child[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    watchdog = threading.Timer(PATIENCE, child.kill)
    watchdog.start()
    os.close(to_child[0])
    os.close(from_child[1])
    with open(to_child[1], 'wb') as commands, open(from_child[0], 'rb') as replies:
        try:
            yield Browser(commands, replies)
        finally:
            watchdog.cancel()
            child.kill()
            child.wait()
