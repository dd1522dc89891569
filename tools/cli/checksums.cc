#include "tools/cli/checksums.h"

#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <vector>

#include "services/base/file.h"
#include "services/base/status.h"
#include "services/checkpoint/checksums.h"
#include "services/gguf/header.h"

namespace switchyard::cli {
namespace {

using checkpoint::Checksums;

constexpr size_t kNamed = 5;

}  // namespace

absl::Status RunChecksums(const std::string& model, bool check) {
  const std::string path = Checksums::PathFor(model);
  SY_ASSIGN_OR_RETURN(const auto source, gguf::IsGguf(model) ? checkpoint::OpenGguf(model)
                                                             : checkpoint::OpenSafetensors(model));
  SY_ASSIGN_OR_RETURN(const Checksums written, Checksums::Read(path));
  if (check && written.empty()) {
    return NotFound("{}: is not there; `switchyard checksums` without --check writes it", path);
  }
  checkpoint::ConsoleProgress progress("Reading the weights");
  SY_ASSIGN_OR_RETURN(const Checksums now, Checksums::Of(*source, std::ref(progress)));
  const size_t tensors = source->tensors().size();
  if (!check) {
    SY_RETURN_IF_ERROR(WriteFile(path, now.Json()));
    std::cout << fmt::format("{}: {} tensors\n", path, tensors);
    return absl::OkStatus();
  }
  std::vector<std::string> damaged = written.Differences(now);
  if (damaged.empty()) {
    std::cout << fmt::format("{}: all tensors of {} are as they were\n", model, path);
    return absl::OkStatus();
  }
  const size_t count = damaged.size();
  damaged.resize(std::min(count, kNamed));
  return DataLoss("{}: {} of {} tensors are not what {} says: {}{}", model, count, tensors, path,
                  fmt::join(damaged, ", "), count > kNamed ? ", …" : "");
}

}  // namespace switchyard::cli
