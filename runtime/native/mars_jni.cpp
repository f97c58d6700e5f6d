// mars_model.h for java/edge/mars/MarsModel.java. Arrays are copied: the largest sample is far cheaper than its encoder.
#include <jni.h>

#include <string>
#include <vector>

#include "mars_model.h"

namespace {

bool fails(JNIEnv* env, int code) {
  if (code == MARS_OK) {
    return false;
  }
  jclass kind = env->FindClass("edge/mars/MarsModel$Failure");
  jmethodID create = env->GetMethodID(kind, "<init>", "(ILjava/lang/String;)V");
  auto failure = static_cast<jthrowable>(env->NewObject(kind, create, code, env->NewStringUTF(mars_model_error())));
  env->Throw(failure);
  return true;
}

// Of a program that was written in the app, so an exception of the language itself.
void refuse(JNIEnv* env, const std::string& message) {
  env->ThrowNew(env->FindClass("java/lang/IllegalArgumentException"), message.c_str());
}

struct Layout {
  mars_model_info info{};
  std::vector<mars_modality> modalities;
};

bool read_layout(JNIEnv* env, jlong id, Layout& layout) {
  if (fails(env, mars_model_describe(id, &layout.info))) {
    return false;
  }
  layout.modalities.resize(layout.info.modalities);
  for (int32_t i = 0; i < layout.info.modalities; ++i) {
    if (fails(env, mars_model_modality(id, i, &layout.modalities[i]))) {
      return false;
    }
  }
  return true;
}

// Empty for a null entry; an exception waits where the entry has another length.
std::vector<float> entry(JNIEnv* env, jobjectArray arrays, int32_t index, int64_t expected, const std::string& what) {
  auto array = static_cast<jfloatArray>(env->GetObjectArrayElement(arrays, index));
  if (array == nullptr) {
    return {};
  }
  const jsize length = env->GetArrayLength(array);
  if (length != expected) {
    refuse(env, what + " has " + std::to_string(length) + " values, expected " + std::to_string(expected));
    return {};
  }
  std::vector<float> values(length);
  env->GetFloatArrayRegion(array, 0, length, values.data());
  env->DeleteLocalRef(array);
  return values;
}

void set_floats(JNIEnv* env, jobject result, const char* field, const std::vector<float>& values) {
  jfloatArray array = env->NewFloatArray(static_cast<jsize>(values.size()));
  env->SetFloatArrayRegion(array, 0, static_cast<jsize>(values.size()), values.data());
  env->SetObjectField(result, env->GetFieldID(env->GetObjectClass(result), field, "[F"), array);
}

void set_experts(JNIEnv* env, jobject result, const std::vector<mars_chosen_expert>& chosen) {
  std::vector<jint> experts;
  std::vector<float> gates;
  for (const mars_chosen_expert& one : chosen) {
    experts.push_back(one.expert);
    gates.push_back(one.gate);
  }
  jintArray array = env->NewIntArray(static_cast<jsize>(experts.size()));
  env->SetIntArrayRegion(array, 0, static_cast<jsize>(experts.size()), experts.data());
  env->SetObjectField(result, env->GetFieldID(env->GetObjectClass(result), "experts", "[I"), array);
  set_floats(env, result, "gates", gates);
}

void set_times(JNIEnv* env, jobject result, const std::vector<double>& times) {
  jdoubleArray array = env->NewDoubleArray(static_cast<jsize>(times.size()));
  env->SetDoubleArrayRegion(array, 0, static_cast<jsize>(times.size()), times.data());
  env->SetObjectField(result, env->GetFieldID(env->GetObjectClass(result), "stageMs", "[D"), array);
}

jstring text_or_null(JNIEnv* env, const char* text) {
  return text == nullptr ? nullptr : env->NewStringUTF(text);
}

// One entry per modality, or an exception waits.
bool has_entries(JNIEnv* env, jarray array, int32_t expected, const char* what) {
  const jsize given = array == nullptr ? -1 : env->GetArrayLength(array);
  if (given != expected) {
    refuse(env, std::string(what) + " needs " + std::to_string(expected) + " entries, one per modality");
  }
  return given == expected;
}

}  // namespace

extern "C" {

JNIEXPORT jlong JNICALL Java_edge_mars_MarsModel_open(JNIEnv* env, jclass, jbyteArray file, jstring name, jint threads) {
  const jsize size = env->GetArrayLength(file);
  jbyte* data = env->GetByteArrayElements(file, nullptr);
  const char* text = env->GetStringUTFChars(name, nullptr);
  uint64_t id = 0;
  const int code = mars_model_open(data, size, text, threads, &id);
  env->ReleaseStringUTFChars(name, text);
  env->ReleaseByteArrayElements(file, data, JNI_ABORT);
  fails(env, code);
  return static_cast<jlong>(id);
}

JNIEXPORT void JNICALL Java_edge_mars_MarsModel_close(JNIEnv* env, jclass, jlong id) {
  fails(env, mars_model_close(id));
}

JNIEXPORT jstring JNICALL Java_edge_mars_MarsModel_manifest(JNIEnv* env, jclass, jlong id) {
  const char *manifest = nullptr, *digest = nullptr;
  return fails(env, mars_model_texts(id, &manifest, &digest)) ? nullptr : env->NewStringUTF(manifest);
}

JNIEXPORT void JNICALL Java_edge_mars_MarsModel_infer(JNIEnv* env, jclass, jlong id, jobjectArray samples,
                                                      jobjectArray features, jobject result) {
  Layout layout;
  if (!read_layout(env, id, layout)) {
    return;
  }
  const int32_t count = layout.info.modalities;
  if (!has_entries(env, samples, count, "samples") || !has_entries(env, features, count, "features")) {
    return;
  }
  std::vector<std::vector<float>> new_samples(count), cached(count), encoded(count);
  std::vector<mars_input> inputs(count);
  for (int32_t i = 0; i < count; ++i) {
    const mars_modality& modality = layout.modalities[i];
    new_samples[i] = entry(env, samples, i, modality.sample_count, std::string("sample of ") + modality.name);
    if (!env->ExceptionCheck() && new_samples[i].empty()) {
      cached[i] = entry(env, features, i, modality.feature_count, std::string("feature of ") + modality.name);
    }
    if (env->ExceptionCheck()) {
      return;
    }
    encoded[i].resize(new_samples[i].empty() ? 0 : modality.feature_count);
    inputs[i] = {new_samples[i].empty() ? nullptr : new_samples[i].data(),
                 cached[i].empty() ? nullptr : cached[i].data(), encoded[i].empty() ? nullptr : encoded[i].data()};
  }
  std::vector<float> logits(layout.info.logit_count);
  std::vector<mars_chosen_expert> chosen(layout.info.active_experts);
  std::vector<double> stage_ms(count + 3);
  mars_result answer{logits.data(), chosen.data(), stage_ms.data()};
  if (fails(env, mars_model_infer(id, inputs.data(), count, &answer))) {
    return;
  }
  for (int32_t i = 0; i < count; ++i) {
    if (!encoded[i].empty()) {
      jfloatArray array = env->NewFloatArray(static_cast<jsize>(encoded[i].size()));
      env->SetFloatArrayRegion(array, 0, static_cast<jsize>(encoded[i].size()), encoded[i].data());
      env->SetObjectArrayElement(features, i, array);
      env->DeleteLocalRef(array);
    }
  }
  set_floats(env, result, "logits", logits);
  set_experts(env, result, chosen);
  set_times(env, result, stage_ms);
}

JNIEXPORT jobjectArray JNICALL Java_edge_mars_MarsModel_decide(JNIEnv* env, jclass, jlong id, jbooleanArray present,
                                                               jfloatArray logits, jdoubleArray numbers) {
  Layout layout;
  if (!read_layout(env, id, layout) || !has_entries(env, present, layout.info.modalities, "present")) {
    return nullptr;
  }
  std::vector<uint8_t> flags(layout.info.modalities);
  env->GetBooleanArrayRegion(present, 0, layout.info.modalities, flags.data());
  std::vector<float> values(logits == nullptr ? 0 : env->GetArrayLength(logits));
  if (logits != nullptr && static_cast<int64_t>(values.size()) != layout.info.logit_count) {
    refuse(env, "logits has " + std::to_string(values.size()) + " values, expected " +
                    std::to_string(layout.info.logit_count));
    return nullptr;
  }
  if (logits != nullptr) {
    env->GetFloatArrayRegion(logits, 0, static_cast<jsize>(values.size()), values.data());
  }
  mars_decision decision{};
  const float* given = logits == nullptr ? nullptr : values.data();
  if (fails(env, mars_model_decide(id, flags.data(), layout.info.modalities, given, &decision))) {
    return nullptr;
  }
  const double pair[] = {decision.score, decision.threshold};
  env->SetDoubleArrayRegion(numbers, 0, 2, pair);
  jobjectArray texts = env->NewObjectArray(4, env->FindClass("java/lang/String"), nullptr);
  const char* all[] = {decision.verdict, decision.label, decision.subset, decision.reason};
  for (jsize i = 0; i < 4; ++i) {
    env->SetObjectArrayElement(texts, i, text_or_null(env, all[i]));
  }
  return texts;
}

}  // extern "C"
