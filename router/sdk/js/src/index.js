/**
 * `@linnet/client`: a chat client that keeps Linnet's promises up to the application.
 *
 * client.js         what an application holds; connects the parts below
 *   conversation.js   one conversation: send, read, show
 *   handle.js         one command on its way
 *   election.js       which tab holds the connection
 *   receiver.js       frames → the model
 *   handing.js        events → the application's handler
 *   sender.js         the outbox → the connection → answers
 *   connection.js     one WebSocket at a time: state machine, tokens, gateways
 *   http.js           the HTTP API
 * media.js          files
 * login.js          tokens from a login with a password
 * place.js          which store a tab uses where there are no Web Locks
 * outbox.js, events.js the two halves of the store: rows and numbers; model and cursors
 * store*.js         what a store is, and IndexedDB, SQLite and memory behind it
 * model.js, closes.js, values.js  rules without I/O
 * types.js          types of objects
 * wire.js           types of commands and events, generated from the schema that the server serves
 */

export { Client } from "./client.js";
export { Conversation } from "./conversation.js";
export { MessageHandle } from "./handle.js";
export { LinnetError } from "./errors.js";
export { login } from "./login.js";

/** @typedef {import("./client.js").ClientOptions} ClientOptions */
/** @typedef {import("./client.js").Listeners} Listeners */
/** @typedef {import("./conversation.js").ConversationView} ConversationView */
/** @typedef {import("./conversation.js").MessageView} MessageView */
/** @typedef {import("./model.js").LoggedEvent} LoggedEvent */
/** @typedef {import("./events.js").HandedEvent} HandedEvent */
