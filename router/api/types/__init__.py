"""Requests and answers of the HTTP API as structs.

Decoding into them validates all fields, so handlers do not check fields again. The OpenAPI document is generated from
them. Unknown fields are ignored. Each module has the structs of the handlers in the module of the same name.

common      what the structs of several calls share
accounts, sessions, contacts, profiles, conversations, messages, commands, state, uploads, search, moderation, admin
            the structs of these handlers; those of reports are in `moderation`
"""
