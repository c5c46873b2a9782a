"""The only code that talks to Redis; its errors end here, as `contract.errors`.

    link        one connection: dial, greet, read, lose, dial again
    sentinel    where the primary is
    hot         commands: calls gathered into few writes, replies by callback
    bus         sharded pub/sub: batches of messages, subscriptions that restore themselves
    library     functions/*.lua as one source, named after its hash
    durability  when what was answered is kept
    client      what the files below call: functions, commands, publishing; the checks at start

    conversations, users, presence, dirty, accounts, …   one file per part of the domain: builds keys and arguments,
                calls a function, reads its reply

The domain files import `client` and never each other; `client` imports `hot` and `library`; `hot` and `bus` build on
`link`. A function, its one Python caller and its test share a name.
"""
