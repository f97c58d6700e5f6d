import edge.mars.MarsModel;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;

/** MODEL FILE...: one file per modality, or "-"; prints logits, experts, gates, decision; then again from its features. */
public final class NativeAnswers {
  public static void main(String[] words) throws IOException {
    byte[] file = Files.readAllBytes(Path.of(words[0]));
    try (MarsModel model = new MarsModel(file, words[0], 1)) {
      int count = words.length - 1;
      float[][] samples = new float[count][];
      boolean[] present = new boolean[count];
      for (int i = 0; i < count; i++) {
        samples[i] = words[i + 1].equals("-") ? null : floats(Path.of(words[i + 1]));
        present[i] = samples[i] != null;
      }
      float[][] features = new float[count][];
      print(model, model.infer(samples, features), present);
      print(model, model.infer(new float[count][], features), present);
      refused(() -> model.infer(new float[count][], new float[count][]));
      refused(() -> model.infer(new float[count + 1][], features));
      samples[0] = new float[3];
      refused(() -> model.infer(samples, features));
      model.close();
      refused(() -> model.manifest());
    } catch (MarsModel.Failure failure) {
      System.out.println(failure.code + " " + failure.getMessage());
    }
  }

  private static void refused(Runnable call) {
    try {
      call.run();
      System.out.println("not refused");
    } catch (RuntimeException error) {
      System.out.println(error.getMessage());
    }
  }

  private static void print(MarsModel model, MarsModel.Result result, boolean[] present) {
    StringBuilder line = new StringBuilder();
    for (float value : result.logits) line.append(Float.toHexString(value)).append(' ');
    for (int i = 0; i < result.experts.length; i++) {
      line.append(result.experts[i]).append(':').append(Float.toHexString(result.gates[i])).append(' ');
    }
    MarsModel.Decision decision = model.decide(present, result.logits);
    System.out.println(line + decision.subset + " " + decision.verdict + " " + decision.reason);
  }

  private static float[] floats(Path path) throws IOException {
    ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(path)).order(ByteOrder.LITTLE_ENDIAN);
    float[] values = new float[bytes.remaining() / 4];
    bytes.asFloatBuffer().get(values);
    return values;
  }
}
