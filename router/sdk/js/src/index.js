/** `@linnet/client`: a chat client that keeps Linnet's promises up to the application. The README has a map of the modules. */

export { Client } from "./client.js";
export { Conversation } from "./conversation.js";
export { MessageHandle } from "./handle.js";
export { LinnetError } from "./errors.js";
export { login } from "./login.js";

/** @typedef {import("./types.js").ClientOptions} ClientOptions */
/** @typedef {import("./types.js").LoginOptions} LoginOptions */
/** @typedef {import("./types.js").SendOptions} SendOptions */
/** @typedef {import("./types.js").UploadOptions} UploadOptions */
/** @typedef {import("./types.js").Listeners} Listeners */
/** @typedef {import("./types.js").Contact} Contact */
/** @typedef {import("./types.js").ConversationView} ConversationView */
/** @typedef {import("./types.js").MessageView} MessageView */
/** @typedef {import("./types.js").LoggedEvent} LoggedEvent */
/** @typedef {import("./types.js").HandedEvent} HandedEvent */
