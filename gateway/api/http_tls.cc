#include "gateway/api/http_tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/stat.h>

#include <utility>

#include "services/base/check.h"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::gateway {
namespace {

// The oldest error of this thread, which is the one that says why.
std::string WhyNot() {
  const unsigned long code = ::ERR_get_error();
  ::ERR_clear_error();
  const char* const reason = code == 0 ? nullptr : ::ERR_reason_error_string(code);
  return reason == nullptr ? "cannot be used" : reason;
}

// Instead of a prompt on the terminal.
int NoPassword(char*, int, int, void*) { return 0; }

}  // namespace

absl::StatusOr<std::unique_ptr<HttpTls>> HttpTls::Create(const HttpTlsFiles& files,
                                                         absl::Duration look_every) {
  std::unique_ptr<HttpTls> tls(new HttpTls(files, look_every));
  absl::MutexLock lock(&tls->mutex_);
  tls->tried_ = tls->Look();
  tls->next_look_ = SteadyNow() + look_every;
  SY_ASSIGN_OR_RETURN(tls->context_, tls->Load());
  return tls;
}

absl::StatusOr<HttpTls::Context> HttpTls::Load() const {
  ::ERR_clear_error();
  const Context context(::SSL_CTX_new(::TLS_server_method()), &::SSL_CTX_free);
  if (context == nullptr) return Internal("TLS: {}", WhyNot());
  ::SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  ::SSL_CTX_set_options(context.get(), SSL_OP_ALL | SSL_OP_NO_COMPRESSION);
  ::SSL_CTX_set_default_passwd_cb(context.get(), &NoPassword);
  if (::SSL_CTX_use_certificate_chain_file(context.get(), files_.cert.c_str()) != 1) {
    return InvalidArgument("--tls-cert {}: {}", files_.cert, WhyNot());
  }
  if (::SSL_CTX_use_PrivateKey_file(context.get(), files_.key.c_str(), SSL_FILETYPE_PEM) != 1) {
    return InvalidArgument("--tls-key {} (of --tls-cert {}): {}", files_.key, files_.cert,
                           WhyNot());
  }
  // A key of another kind than the certificate's is taken without a word above.
  if (::SSL_CTX_check_private_key(context.get()) != 1) {
    ::ERR_clear_error();
    return InvalidArgument("--tls-key {} is not the key of --tls-cert {}", files_.key, files_.cert);
  }
  if (files_.ca.empty()) return context;
  if (::SSL_CTX_load_verify_locations(context.get(), files_.ca.c_str(), nullptr) != 1) {
    return InvalidArgument("--tls-ca {}: {}", files_.ca, WhyNot());
  }
  ::SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  // Without it a client that resumes its session is refused.
  static constexpr unsigned char kSessions[] = "switchyard-http";
  if (::SSL_CTX_set_session_id_context(context.get(), kSessions, sizeof kSessions - 1) != 1) {
    return InvalidArgument("--tls-ca {}: no session context can be set", files_.ca);
  }
  return context;
}

HttpTls::Stamps HttpTls::Look() const {
  Stamps out;
  const std::string* const paths[] = {&files_.cert, &files_.key, &files_.ca};
  for (size_t i = 0; i < out.size(); ++i) {
    struct stat found = {};
    if (paths[i]->empty() || ::stat(paths[i]->c_str(), &found) != 0) continue;
    out[i] = {.modified_ns = found.st_mtim.tv_sec * 1'000'000'000 + found.st_mtim.tv_nsec,
              .inode = found.st_ino,
              .bytes = static_cast<uint64_t>(found.st_size)};
  }
  return out;
}

ssl_st* HttpTls::NewSession() {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = SteadyNow();
  // A clock that was set back does not put it off.
  if (now >= next_look_ || next_look_ - now > look_every_) {
    next_look_ = now + look_every_;
    // Looked at before they are read: what changes in between is seen the next time.
    const Stamps stamps = Look();
    if (stamps != std::exchange(tried_, stamps)) {
      absl::StatusOr<Context> renewed = Load();
      if (renewed.ok()) {
        context_ = *std::move(renewed);
        log::Info("http: --tls-cert {} was read again", files_.cert);
      } else {
        log::Warning("http: the TLS files have changed and cannot be used, the old ones stay: {}",
                     ToStd(renewed.status().message()));
      }
    }
  }
  ssl_st* const session = ::SSL_new(context_.get());
  SY_CHECK(session != nullptr);  // memory has ended
  return session;
}

}  // namespace switchyard::gateway
