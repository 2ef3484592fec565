// Frames of a camera, one after the other as fast as they are scored.

const CHOICE = { facingMode: "environment", width: { ideal: 1280 } };

export class Camera {
  #stream = null;

  /** `scoreFrame` is given an ImageBitmap and waited for; `complain` a sentence. */
  constructor(video, button, choice, { scoreFrame, complain }) {
    Object.assign(this, { video, button, choice, scoreFrame, complain });
    button.addEventListener("click", () => (this.#stream ? this.stop() : this.#start()));
    choice.addEventListener("change", () => this.#start());
    if (navigator.mediaDevices) return;
    button.disabled = true;
    button.title = "Browsers allow cameras only on https and on addresses of this computer "
      + "(http://127.0.0.1).";
  }

  stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    this.video.srcObject = null;
    this.button.textContent = "Use a camera";
    this.choice.hidden = true;
  }

  async #start() {
    const deviceId = this.choice.value ? { exact: this.choice.value } : undefined;
    this.stop();
    this.complain("");
    try {
      const video = deviceId ? { ...CHOICE, facingMode: undefined, deviceId } : CHOICE;
      this.#stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
      this.video.srcObject = this.#stream;
      await this.video.play();
    } catch (error) {
      this.stop();
      this.complain(`No camera: ${error.message}`);
      return;
    }
    this.button.textContent = "Stop the camera";
    await this.#list();
    await this.#run(this.#stream);
  }

  async #run(stream) {
    const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
    while (this.#stream === stream) {
      const frame = await createImageBitmap(this.video, options).catch(() => null);
      if (this.#stream !== stream) return;
      if (!frame || !stream.active) {
        this.stop();
        this.complain("The camera gives no more pictures.");
        return;
      }
      await this.scoreFrame(frame);
      await new Promise((resolve) => { requestAnimationFrame(resolve); });
    }
  }

  async #list() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    const cameras = devices.filter(({ kind }) => kind === "videoinput");
    const current = this.#stream?.getVideoTracks()[0].getSettings().deviceId;
    this.choice.replaceChildren(...cameras.map(({ label, deviceId }, at) => {
      return new Option(label || `camera ${at + 1}`, deviceId, false, deviceId === current);
    }));
    this.choice.hidden = cameras.length < 2;
  }
}
