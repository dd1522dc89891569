#include "tools/quantize/quantize.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "services/base/cores.h"
#include "services/base/file.h"
#include "services/base/status.h"
#include "services/checkpoint/checksums.h"
#include "services/checkpoint/progress.h"
#include "services/model/spec_from_hf.h"
#include "services/tokenizer/tokenizer.h"
#include "tools/quantize/awq_plan.h"
#include "tools/quantize/model_probe.h"
#include "tools/quantize/quantization_config.h"
#include "tools/quantize/roles.h"
#include "tools/quantize/safetensors_writer.h"

namespace switchyard::quantize {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxTextBytes = uint64_t{256} << 20;

struct Text {
  uint64_t bytes = 0;  // of the tokens
  std::vector<int32_t> tokens;
  int32_t first = -1;  // of every window
};

absl::StatusOr<Text> ReadText(const QuantizeOptions& options) {
  SY_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.text, kMaxTextBytes));
  SY_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(options.in));
  Text out;
  SY_ASSIGN_OR_RETURN(out.tokens, tokenizer->Encode(text, {.add_special_tokens = false}));
  const size_t all = out.tokens.size();
  out.tokens.resize(std::min(all, static_cast<size_t>(options.text_tokens)));
  out.bytes = all == 0 ? 0 : text.size() * out.tokens.size() / all;
  out.first = tokenizer->bos_id().value_or(-1);
  if (out.tokens.size() < 2) return InvalidArgument("{}: has no text", options.text);
  return out;
}

absl::Status CheckDirectories(const QuantizeOptions& options) {
  std::error_code error;
  if (!fs::is_directory(options.in, error)) {
    return InvalidArgument("{}: not a directory; Hugging Face checkpoints can be quantised",
                           options.in);
  }
  if (fs::exists(options.out, error) && !fs::is_empty(options.out, error)) {
    return AlreadyExists("{}: is there already; name a new directory", options.out);
  }
  fs::create_directories(options.out, error);
  if (error) return Unavailable("{}: cannot be made: {}", options.out, error.message());
  return absl::OkStatus();
}

// One run of Quantize: the checkpoint's tensors and what becomes of them.
class Run {
 public:
  explicit Run(const QuantizeOptions& options)
      : options_(options), pool_(options.threads > 0 ? options.threads : UsableCores()) {}

  absl::StatusOr<QuantizeReport> Do();

 private:
  absl::Status Open();
  // Perplexity of a directory; of the original AWQ's plan too.
  absl::StatusOr<double> Probe(const std::string& directory, const std::string& label, bool plan);
  absl::Status WriteTensors();
  absl::Status WriteTensor(const checkpoint::TensorInfo& tensor, SafetensorsWriter& writer);
  absl::Status WriteMatrix(const checkpoint::MappedTensor& mapped, const Role& role,
                           SafetensorsWriter& writer);
  absl::Status WriteFiles() const;
  absl::Status WriteChecksums() const;
  absl::Status CheckSpace() const;
  void RemoveWritten() const;

  Role RoleOf(const std::string& name) const {
    const auto at = roles_.find(name);
    return at == roles_.end() ? Role{} : at->second;
  }
  const AwqLayer* AwqOf(const Role& role) const {
    const auto at = awq_.find(role.layer);
    return at == awq_.end() ? nullptr : &at->second;
  }
  // Where an MLP's scales stand.
  size_t ExpertOf(const Role& role) const {
    return static_cast<size_t>(role.expert >= 0 ? role.expert : spec_.experts.count);
  }
  std::vector<StoredTensor> Stored(const checkpoint::TensorInfo& tensor) const;
  // Multiplies w by what the plan says; the task's importance and column scale.
  void ScaleMatrix(const Role& role, MatrixTask& task, std::vector<float>& w) const;
  void Count(const Role& role, const checkpoint::TensorInfo& tensor);
  void CountError(const Role& role, const ErrorSum& error);

  struct LayerErrors {
    ErrorSum attention, mlp, experts;
  };

  const QuantizeOptions& options_;
  kernels::ThreadPool pool_;
  ModelSpec spec_;
  std::unique_ptr<checkpoint::TensorSource> source_;
  Roles roles_;
  Format format_;
  Text text_;
  std::map<int, AwqLayer> awq_;
  std::map<int, LayerErrors> errors_;
  QuantizeReport report_;
};

absl::Status Run::Open() {
  SY_RETURN_IF_ERROR(CheckDirectories(options_));
  SY_RETURN_IF_ERROR(CheckNotQuantised(options_.in));
  SY_ASSIGN_OR_RETURN(spec_, LoadSpec(options_.in));
  SY_ASSIGN_OR_RETURN(source_, checkpoint::OpenSafetensors(options_.in));
  SY_ASSIGN_OR_RETURN(roles_, RolesOf(spec_, options_.scheme));
  format_.scheme = options_.scheme;
  SY_ASSIGN_OR_RETURN(format_.group,
                      GroupFor(roles_, *source_, options_.scheme, options_.group_size));
  const bool int4 = options_.scheme == Scheme::kInt4 || options_.scheme == Scheme::kInt4Awq;
  report_.group_size = int4 ? static_cast<int>(format_.group) : 0;
  if (options_.scheme == Scheme::kInt4Awq && options_.text.empty()) {
    return UsageError("int4-awq needs a text: --text FILE");
  }
  std::vector<checkpoint::TensorRange> all;
  for (const checkpoint::TensorInfo& tensor : source_->tensors()) {
    all.push_back({.name = tensor.name});
  }
  return source_->Map(all);
}

absl::StatusOr<double> Run::Probe(const std::string& directory, const std::string& label,
                                  bool plan) {
  SY_ASSIGN_OR_RETURN(const auto probe,
                      ModelProbe::Open(directory, options_.threads, options_.isa));
  checkpoint::ConsoleProgress console(label);
  const auto progress = [&](uint64_t done, uint64_t total) {
    console(done * text_.bytes / total, text_.bytes);
  };
  if (!plan) return probe->Perplexity(text_.tokens, text_.first, progress);
  ActivationStats stats(*probe);
  SY_ASSIGN_OR_RETURN(const double perplexity,
                      probe->Perplexity(text_.tokens, text_.first, progress,
                                        [&](const router::MoeJob& job) { stats.Observe(job); }));
  SY_RETURN_IF_ERROR(stats.status());
  SY_ASSIGN_OR_RETURN(awq_, PlanAwq(*probe, stats, format_.group));
  return perplexity;
}

std::vector<StoredTensor> Run::Stored(const checkpoint::TensorInfo& tensor) const {
  const Role role = RoleOf(tensor.name);
  if (role.quantised()) {
    return StoredAs(format_, tensor.name, tensor.shape[0], tensor.shape[1]);
  }
  const bool scaled = role.kind == Role::Kind::kRouterGate && AwqOf(role) != nullptr;
  return {{tensor.name, scaled ? DType::kF32 : tensor.dtype, tensor.shape}};
}

void Run::ScaleMatrix(const Role& role, MatrixTask& task, std::vector<float>& w) const {
  const AwqLayer* awq = AwqOf(role);
  if (awq == nullptr || role.kind == Role::Kind::kAttention) return;
  const size_t expert = ExpertOf(role);
  const bool down = role.kind == Role::Kind::kDown;
  const std::vector<float>& columns = down ? awq->down[expert] : awq->input;
  const std::vector<float>& importance =
      down ? awq->down_importance[expert] : awq->input_importance;
  const float* rows = role.kind == Role::Kind::kUp ? awq->down[expert].data() : nullptr;
  for (int64_t r = 0; r < task.out; ++r) {
    float* row = w.data() + r * task.in;
    for (int64_t i = 0; i < task.in; ++i) {
      row[i] *= columns[static_cast<size_t>(i)] * (rows != nullptr ? 1.0f / rows[r] : 1.0f);
    }
  }
  task.column_scale = columns.data();
  task.importance = importance.empty() ? nullptr : importance.data();
}

absl::Status Run::WriteMatrix(const checkpoint::MappedTensor& mapped, const Role& role,
                              SafetensorsWriter& writer) {
  MatrixTask task = {.out = mapped.shape[0], .in = mapped.shape[1]};
  std::vector<float> w(static_cast<size_t>(task.out * task.in));
  const int64_t row_bytes = task.in * static_cast<int64_t>(SizeOf(mapped.dtype));
  pool_.ParallelFor(task.out, 16, [&](int64_t begin, int64_t end) {
    kernels::ConvertToFloat(mapped.data + begin * row_bytes, mapped.dtype, (end - begin) * task.in,
                            w.data() + begin * task.in);
  });
  ScaleMatrix(role, task, w);
  task.w = w.data();
  std::vector<std::vector<std::byte>> parts;
  CountError(role, Encode(format_, task, pool_, &parts));
  for (const std::vector<std::byte>& part : parts) SY_RETURN_IF_ERROR(writer.Write(part));
  return absl::OkStatus();
}

absl::Status Run::WriteTensor(const checkpoint::TensorInfo& tensor, SafetensorsWriter& writer) {
  SY_ASSIGN_OR_RETURN(const checkpoint::MappedTensor mapped, source_->Get({.name = tensor.name}));
  const Role role = RoleOf(tensor.name);
  Count(role, tensor);
  if (role.quantised()) return WriteMatrix(mapped, role, writer);
  const AwqLayer* awq = AwqOf(role);
  if (awq == nullptr || role.kind == Role::Kind::kCopy) {
    return writer.Write({mapped.data, static_cast<size_t>(tensor.bytes)});
  }
  const auto width = static_cast<int64_t>(awq->input.size());
  if (role.kind == Role::Kind::kMlpNorm) {
    std::vector<std::byte> norm(static_cast<size_t>(tensor.bytes));
    kernels::Convert(awq->norm.data(), width, tensor.dtype, norm.data());
    return writer.Write(norm);
  }
  std::vector<float> gate(static_cast<size_t>(mapped.shape[0] * width));
  kernels::ConvertToFloat(mapped.data, mapped.dtype, static_cast<int64_t>(gate.size()),
                          gate.data());
  for (size_t i = 0; i < gate.size(); ++i) gate[i] *= awq->input[i % awq->input.size()];
  return writer.Write(std::as_bytes(std::span(gate)));
}

absl::Status Run::WriteTensors() {
  std::vector<StoredTensor> stored;
  for (const checkpoint::TensorInfo& tensor : source_->tensors()) {
    for (StoredTensor& part : Stored(tensor)) {
      report_.bytes_after += part.bytes();
      if (RoleOf(tensor.name).expert >= 0) report_.expert_bytes_after += part.bytes();
      stored.push_back(std::move(part));
    }
    report_.bytes_before += tensor.bytes;
  }
  SY_RETURN_IF_ERROR(CheckSpace());
  SafetensorsWriter writer(options_.out, std::move(stored), options_.file_bytes);
  checkpoint::ConsoleProgress progress("Quantising");
  uint64_t done = 0;
  for (const checkpoint::TensorInfo& tensor : source_->tensors()) {
    SY_RETURN_IF_ERROR(WriteTensor(tensor, writer));
    progress(done += tensor.bytes, report_.bytes_before);
  }
  return writer.Finish();
}

void Run::Count(const Role& role, const checkpoint::TensorInfo& tensor) {
  if (role.expert >= 0) report_.expert_bytes_before += tensor.bytes;
}

void Run::CountError(const Role& role, const ErrorSum& error) {
  LayerErrors& layer = errors_[role.layer];
  const bool attention = role.kind == Role::Kind::kAttention;
  (attention ? layer.attention : role.expert >= 0 ? layer.experts : layer.mlp).Add(error);
}

// What belongs to a model beside its tensors: small files of text. config.json comes last.
absl::Status Run::WriteFiles() const {
  constexpr std::string_view kCopied[] = {".json", ".jinja", ".txt", ".model", ".md"};
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(options_.in, error)) {
    const std::string name = entry.path().filename();
    const bool text = std::ranges::count(kCopied, entry.path().extension().string()) > 0;
    const bool ours = name == "config.json" || name == "model.safetensors.index.json" ||
                      entry.path() == checkpoint::Checksums::PathFor(options_.in);
    if (!text || ours || !entry.is_regular_file()) continue;
    fs::copy_file(entry.path(), fs::path(options_.out) / name, error);
    if (error) return Unavailable("{}: cannot be copied: {}", name, error.message());
  }
  const std::string checksums = checkpoint::Checksums::PathFor(options_.in);
  if (FileExists(checksums)) SY_RETURN_IF_ERROR(WriteChecksums());
  return WriteConfig(options_.in, options_.out, format_);
}

// Of what was written, where the original has some too.
absl::Status Run::WriteChecksums() const {
  SY_ASSIGN_OR_RETURN(const auto written, checkpoint::OpenSafetensors(options_.out));
  checkpoint::ConsoleProgress progress("Reading what was written");
  SY_ASSIGN_OR_RETURN(const auto checksums,
                      checkpoint::Checksums::Of(*written, std::ref(progress)));
  return WriteFile(checkpoint::Checksums::PathFor(options_.out), checksums.Json());
}

// Before hours of work.
absl::Status Run::CheckSpace() const {
  std::error_code error;
  const fs::space_info space = fs::space(options_.out, error);
  if (error || space.available >= report_.bytes_after) return absl::OkStatus();
  return ResourceExhausted(
      "{}: the disk has {} bytes free and the tensors take {}: {} bytes are missing", options_.out,
      space.available, report_.bytes_after, report_.bytes_after - space.available);
}

// It was new or empty, and half a checkpoint is none.
void Run::RemoveWritten() const {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(options_.out, error)) {
    fs::remove_all(entry.path(), error);
  }
}

absl::StatusOr<QuantizeReport> Run::Do() {
  SY_RETURN_IF_ERROR(Open());
  const bool has_text = !options_.text.empty();
  if (has_text) {
    SY_ASSIGN_OR_RETURN(text_, ReadText(options_));
    report_.predicted_tokens = static_cast<int64_t>(text_.tokens.size());
    SY_ASSIGN_OR_RETURN(report_.perplexity_before, Probe(options_.in, "Reading the text",
                                                         options_.scheme == Scheme::kInt4Awq));
  }
  absl::Status wrote = WriteTensors();
  if (wrote.ok()) wrote = WriteFiles();
  if (!wrote.ok()) {
    RemoveWritten();
    return wrote;
  }
  for (const auto& [layer, e] : errors_) {
    report_.layers.push_back(
        {layer, e.attention.Relative(), e.mlp.Relative(), e.experts.Relative()});
  }
  if (!has_text) return std::move(report_);
  const auto after = Probe(options_.out, "Reading the text again", false);
  if (after.ok()) {
    report_.perplexity_after = *after;
  } else if (absl::IsUnimplemented(after.status())) {
    report_.not_read_back = ToStd(after.status().message());
  } else {
    return after.status();
  }
  return std::move(report_);
}

}  // namespace

absl::StatusOr<Scheme> SchemeFrom(const std::string& name) {
  if (name == "int8") return Scheme::kInt8;
  if (name == "int4") return Scheme::kInt4;
  if (name == "int4-awq") return Scheme::kInt4Awq;
  if (name == "fp8") return Scheme::kFp8;
  return InvalidArgument("scheme \"{}\"; known: int8, int4, int4-awq, fp8", name);
}

absl::StatusOr<QuantizeReport> Quantize(const QuantizeOptions& options) {
  return Run(options).Do();
}

}  // namespace switchyard::quantize
