// The websocket to the server: text messages as objects, moments as headers with their pictures.

export class Connection {
  constructor(handlers) {
    this.handlers = handlers;
    const address = new URL("play", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.order = Promise.resolve(); // pictures are decoded one after another
    this.socket.onopen = () => handlers.open();
    this.socket.onclose = () => handlers.close();
    this.socket.onmessage = (event) => this.receive(event.data);
  }

  send(type, fields = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...fields }));
  }

  receive(data) {
    if (typeof data === "string") {
      const message = JSON.parse(data);
      this.order = this.order.then(() => this.handlers[message.type]?.(message));
      return;
    }
    const arrived = performance.now();
    const length = new DataView(data).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    this.send("seen", { moment: header.moment });
    let start = 4 + length;
    const strips = header.strips.map((size) => {
      const blob = new Blob([new Uint8Array(data, start, size)], { type: "image/jpeg" });
      start += size;
      return createImageBitmap(blob);
    });
    this.order = this.order.then(async () => this.handlers.moment(header, await Promise.all(strips), arrived));
  }
}
