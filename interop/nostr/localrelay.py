"""Runs the LocalRelay of nostr-sdk: `localrelay.py PORT [auth]`. Says `listening` once it does."""

import asyncio
import inspect
import sys

import nostr_sdk as sdk


async def settled(value):
    """Some versions answer at once, others by a future."""
    return await value if inspect.isawaitable(value) else value


async def main():
    builder = sdk.LocalRelayBuilder().addr("127.0.0.1").port(int(sys.argv[1]))
    if "auth" in sys.argv[2:]:
        builder = builder.nip42(sdk.LocalRelayBuilderNip42(mode=sdk.LocalRelayBuilderNip42Mode.BOTH))
    relay = builder.build() if hasattr(builder, "build") else sdk.LocalRelay(builder)
    await settled(relay.run())
    print("listening", await settled(relay.url()), flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
