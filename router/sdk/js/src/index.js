/** `@linnet/client`: a chat client that keeps Linnet's promises up to the application. The README has a map of the modules. */

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
