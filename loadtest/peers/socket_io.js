// Socket.IO with its Redis adapter, as documented: one node of it. NODE_PATH says where its modules are.
//
//     node loadtest/peers/socket_io.js PORT REDIS_SOCKET
//
// What a user would write: a room per conversation, a message goes to its room, and the sender is told that it went.
"use strict";

const { createServer } = require("http");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");
const { Server } = require("socket.io");

async function serve(port, path) {
  const publisher = createClient({ socket: { path } });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  const http = createServer();
  const io = new Server(http, { adapter: createAdapter(publisher, subscriber), transports: ["websocket"] });
  io.on("connection", (socket) => {
    socket.on("join", (room, done) => {
      socket.join(room);
      done();
    });
    socket.on("message", (message, done) => {
      io.to(message.to).emit("message", message);
      done();
    });
  });
  http.listen(port, "127.0.0.1");
}

serve(Number(process.argv[2]), process.argv[3]);
