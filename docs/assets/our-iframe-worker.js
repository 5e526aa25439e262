// Search in a site that is opened from disk: browsers start no worker there, so its script runs in a frame that is not shown.
class FrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    // What the script has as a worker: messages of its own go to this page, and scripts are loaded one after the other.
    const around = () => {
      window.postMessage = (data) => parent.postMessage(data, "*");
      window.importScripts = (...urls) => urls.reduce((before, next) => before.then(() => new Promise((done) => {
        document.body.append(Object.assign(document.createElement("script"), { src: next, onload: done }));
      })), Promise.resolve());
    };
    this.frame.srcdoc = `<body><script>(${around})()<\/script><script src="${url}"><\/script>`;
    this.loaded = new Promise((done) => this.frame.addEventListener("load", done));
    document.body.append(this.frame);
    addEventListener("message", ({ source, data }) => {
      if (source === this.frame.contentWindow) this.dispatchEvent(new MessageEvent("message", { data }));
    });
  }

  postMessage(data) {
    this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
  }
}
if (location.protocol === "file:") window.Worker = FrameWorker;
