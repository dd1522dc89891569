#include "services/security/tls.h"

#include <arpa/inet.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "services/base/file.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::security {
namespace {

constexpr uint64_t kPemBytesMax = 4 << 20;
constexpr unsigned kRefreshSeconds = 1;

using CertificatePtr = std::unique_ptr<X509, decltype(&X509_free)>;
using KeyPtr = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

// Runs a PEM reader over the whole file that a flag names.
template <typename T>
absl::StatusOr<T*> ReadPem(std::string_view flag, const std::string& path, std::string_view what,
                           T* (*read)(BIO*, T**, pem_password_cb*, void*)) {
  const absl::StatusOr<std::string> file = ReadFile(path, kPemBytesMax);
  if (!file.ok()) return Annotate(file.status(), flag);
  const std::string& text = *file;
  std::unique_ptr<BIO, decltype(&BIO_free)> bio(
      BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), BIO_free);
  // An empty password instead of a prompt on the terminal.
  static constexpr char kNoPassword[] = "";
  T* value = read(bio.get(), nullptr, nullptr, const_cast<char*>(kNoPassword));
  ERR_clear_error();
  if (value == nullptr) return InvalidArgument("{}: {}: holds no {} in PEM", flag, path, what);
  return value;
}

std::shared_ptr<grpc::experimental::CertificateProviderInterface> Watch(const TlsFiles& files) {
  return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      files.key, files.cert, files.ca, kRefreshSeconds);
}

}  // namespace

absl::Status CheckTlsFiles(const TlsFiles& files) {
  if (files.cert.empty() != files.key.empty()) {
    return UsageError("{0}-{1} is given without {0}-{2}; give both", files.flags,
                      files.cert.empty() ? "key" : "cert", files.cert.empty() ? "cert" : "key");
  }
  if (!files.ca.empty()) {
    SY_ASSIGN_OR_RETURN(
        X509 * ca, ReadPem<X509>(files.flags + "-ca", files.ca, "certificate", PEM_read_bio_X509));
    X509_free(ca);
  }
  if (files.cert.empty()) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(X509 * raw_cert, ReadPem<X509>(files.flags + "-cert", files.cert,
                                                     "certificate", PEM_read_bio_X509));
  const CertificatePtr cert(raw_cert, X509_free);
  SY_ASSIGN_OR_RETURN(EVP_PKEY * raw_key,
                      ReadPem<EVP_PKEY>(files.flags + "-key", files.key,
                                        "private key without a password", PEM_read_bio_PrivateKey));
  const KeyPtr key(raw_key, EVP_PKEY_free);
  const bool match = X509_check_private_key(cert.get(), key.get()) == 1;
  ERR_clear_error();
  if (!match) {
    return InvalidArgument("{0}-key {1}: is not the private key of {0}-cert {2}", files.flags,
                           files.key, files.cert);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(const TlsFiles& files) {
  if (files.empty()) return grpc::InsecureServerCredentials();
  SY_RETURN_IF_ERROR(CheckTlsFiles(files));
  if (files.cert.empty()) {
    return UsageError("{0}-ca is given without {0}-cert; a listener needs a certificate",
                      files.flags);
  }
  grpc::experimental::TlsServerCredentialsOptions options(Watch(files));
  options.watch_identity_key_cert_pairs();
  if (!files.ca.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(const TlsFiles& files) {
  if (files.empty()) return grpc::InsecureChannelCredentials();
  SY_RETURN_IF_ERROR(CheckTlsFiles(files));
  if (files.ca.empty()) {
    return UsageError("{}-ca is missing: a client checks the server's certificate by it",
                      files.flags);
  }
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(Watch(files));
  options.watch_root_certs();
  if (!files.cert.empty()) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

bool IsLocal(std::string_view address) {
  if (address.substr(0, 5) == "unix:") return true;
  const std::string host(address.substr(0, address.rfind(':')));
  if (host == "localhost") return true;
  in_addr v4;
  if (::inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  if (host.size() < 2 || host.front() != '[' || host.back() != ']') return false;
  in6_addr v6;
  return ::inet_pton(AF_INET6, host.substr(1, host.size() - 2).c_str(), &v6) == 1 &&
         IN6_IS_ADDR_LOOPBACK(&v6);
}

void WarnIfExposed(std::string_view address, const TlsFiles& files, bool keyless) {
  if (!files.ca.empty()) keyless = false;
  if (IsLocal(address) || (!files.empty() && !keyless)) return;
  const char* mend = files.empty()
                         ? keyless ? "without TLS and without an API key; give --tls-cert and "
                                     "--tls-key, and --api-key-file"
                                   : "without TLS; give --tls-cert and --tls-key"
                         : "without an API key; give --api-key-file";
  log::Warning("{} can be reached from other machines {}", address, mend);
}

}  // namespace switchyard::security
