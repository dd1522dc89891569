// TLS of the HTTP listener out of PEM files. They are looked at when a client connects: a renewed
// certificate is used without a restart; files that cannot be used leave the old ones in force.
// Thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

struct ssl_ctx_st;
struct ssl_st;

namespace switchyard::gateway {

struct HttpTlsFiles {
  std::string cert;  // chain
  std::string key;
  std::string ca;  // empty: clients show no certificate
};

class HttpTls {
 public:
  // INVALID_ARGUMENT names the file. Looks at the files again after `look_every` at the earliest.
  static absl::StatusOr<std::unique_ptr<HttpTls>> Create(const HttpTlsFiles& files,
                                                         absl::Duration look_every);

  // For one connection; the caller's.
  ssl_st* NewSession();

 private:
  using Context = std::shared_ptr<ssl_ctx_st>;
  struct Stamp {
    int64_t modified_ns = 0;
    uint64_t inode = 0, bytes = 0;
    bool operator==(const Stamp&) const = default;
  };
  using Stamps = std::array<Stamp, 3>;

  HttpTls(HttpTlsFiles files, absl::Duration look_every)
      : files_(std::move(files)), look_every_(look_every) {}
  absl::StatusOr<Context> Load() const;
  Stamps Look() const;

  const HttpTlsFiles files_;
  const absl::Duration look_every_;
  absl::Mutex mutex_;
  Context context_ ABSL_GUARDED_BY(mutex_);
  Stamps tried_ ABSL_GUARDED_BY(mutex_);  // of the files when they were last loaded, or not
  absl::Time next_look_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace switchyard::gateway
