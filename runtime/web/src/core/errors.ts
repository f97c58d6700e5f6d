/** What mars-edge throws on purpose; each message is one line for a person. */
export class MarsEdgeError extends Error {}

/** The request is wrong: a sample, a name, a source. */
export class UsageError extends MarsEdgeError {}

/** The model file cannot be trusted: truncated, altered, of an unknown schema, or not ours. */
export class ModelFileError extends MarsEdgeError {}

/** The engine failed, or answers other than the manifest promises. */
export class EngineError extends MarsEdgeError {}

/** A source failed; `gone` is true when the device itself has vanished. */
export class SensorError extends MarsEdgeError {
  constructor(
    message: string,
    readonly gone = false,
  ) {
    super(message);
  }
}
