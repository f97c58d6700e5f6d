package edge.mars;

/**
 * A mars-edge model in an app: mars_model.h for Kotlin and Java. Works on Android and on a desktop's JVM.
 *
 * <p>Per modality, in the order of the manifest: a sample, or null where it has no new one. A modality without a sample
 * and without a feature is missing. Safe to share between threads, which take turns.
 */
public final class MarsModel implements AutoCloseable {
  static {
    System.loadLibrary("mars_jni");
  }

  /** What the policy in the manifest says; label and reason may be null, score and threshold NaN. */
  public static final class Decision {
    public String verdict;
    public String label;
    public String subset;
    public String reason;
    public double score;
    public double threshold;
  }

  /** One inference: stageMs holds the encoders (negative: did not run), route, experts, head. */
  public static final class Result {
    public float[] logits;
    public int[] experts;
    public float[] gates;
    public double[] stageMs;
  }

  /** The one line of mars_model_error; code is 1 engine, 2 usage, 4 bad model file. */
  public static final class Failure extends RuntimeException {
    public final int code;

    Failure(int code, String message) {
      super(message);
      this.code = code;
    }
  }

  private long id;

  /** Verifies the bytes of a .pte, reads its manifest, runs its self-test; 0 threads: as many as suit the network. */
  public MarsModel(byte[] file, String name, int threads) {
    id = open(file, name, threads);
  }

  public String manifest() {
    return manifest(id);
  }

  /**
   * @param samples per modality its preprocessed sample, or null
   * @param features per modality what an earlier call left here, or null; written for each new sample
   */
  public Result infer(float[][] samples, float[][] features) {
    Result result = new Result();
    infer(id, samples, features, result);
    return result;
  }

  public Decision decide(boolean[] present, float[] logits) {
    double[] numbers = new double[2];
    String[] texts = decide(id, present, logits, numbers);
    Decision decision = new Decision();
    decision.verdict = texts[0];
    decision.label = texts[1];
    decision.subset = texts[2];
    decision.reason = texts[3];
    decision.score = numbers[0];
    decision.threshold = numbers[1];
    return decision;
  }

  @Override
  public void close() {
    close(id);
    id = 0;
  }

  private static native long open(byte[] file, String name, int threads);

  private static native void close(long id);

  private static native String manifest(long id);

  private static native void infer(long id, float[][] samples, float[][] features, Result result);

  private static native String[] decide(long id, boolean[] present, float[] logits, double[] numbers);
}
