"""An ssh server as a program of its own, so that it shares no interpreter lock with the client under test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys

import asyncssh


async def serve(host: str, port: int, home: str, **options: object) -> None:
    class Session(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            print("publickey", username, file=sys.stderr, flush=True)
            return True

        def connection_requested(self, *_: object) -> bool:
            return True

    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        child = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            process.command or "",
            cwd=home,
            env={**os.environ, "HOME": home, "PATH": f"{home}/bin:{os.environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        stdin, stdout, stderr = child.stdin, child.stdout, child.stderr
        assert stdin and stdout and stderr

        async def feed() -> None:
            with contextlib.suppress(OSError, asyncssh.Error):
                while data := await process.stdin.read(65536):
                    stdin.write(data)
                    await stdin.drain()
            stdin.close()

        async def bring(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()

        # Not `process.redirect`: asyncssh 2.24 then loses the end of the output of a command that it feeds too fast.
        feeding = asyncio.create_task(feed())
        # As with OpenSSH, a command whose channel is closed runs on until it says something.
        with contextlib.suppress(OSError, asyncssh.Error):
            await asyncio.gather(bring(stdout, process.stdout), bring(stderr, process.stderr))
            process.exit(await child.wait())
        feeding.cancel()

    await asyncssh.listen(
        host, port, server_factory=Session, process_factory=run, encoding=None, sftp_factory=True, **options
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(**json.loads(sys.argv[1])))
