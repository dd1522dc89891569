// TLS of gRPC listeners and channels out of PEM files, which are watched: a renewed certificate is
// used without a restart (write it beside and rename, key and certificate together).
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace grpc {
class ChannelCredentials;
class ServerCredentials;
}  // namespace grpc

namespace switchyard::security {

struct TlsFiles {
  std::string cert;  // chain
  std::string key;
  std::string ca;
  std::string flags = "--tls";  // what the flags that name them begin with, for errors

  bool empty() const { return cert.empty() && key.empty() && ca.empty(); }
};

// Checks that the files can be read, are PEM, and that key and certificate belong together; errors
// name the file.
absl::Status CheckTlsFiles(const TlsFiles& files);

// Of a listener: no files → insecure; cert and key → TLS; with ca → clients must show a certificate
// signed by it (mTLS).
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(const TlsFiles& files);

// Towards a server: no files → insecure; ca → the server must be signed by it and bear the name
// that was dialled; cert and key → shown to the server.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(const TlsFiles& files);

// Whether only this machine can reach a listener there: a loopback address, localhost or a unix
// socket.
bool IsLocal(std::string_view address);

// Logs one warning if the listener can be reached from elsewhere without TLS or, where it could ask
// for API keys and does not (`keyless`), without a key. A client's certificate is as good as a key.
void WarnIfExposed(std::string_view address, const TlsFiles& files, bool keyless = false);

}  // namespace switchyard::security
