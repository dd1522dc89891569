// A plain socket for tests that must send what no HTTP client would.
#pragma once

#include <string>
#include <string_view>

namespace switchyard::testing {

class RawClient {
 public:
  // HOST:PORT (numeric) or unix:PATH; connected() says whether it worked.
  explicit RawClient(const std::string& address, int receive_buffer = 0);
  ~RawClient();
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return fd_ >= 0; }
  bool Send(std::string_view bytes);
  void HalfClose();
  void Close();
  // Reads until `marker` was seen, the peer closed, or ten seconds passed; gives what was read
  // since the last call, the marker included.
  std::string ReadUntil(std::string_view marker);
  // Until the peer closes.
  std::string ReadAll();
  bool saw_end() const { return end_; }

 private:
  bool ReadMore();

  int fd_ = -1;
  bool end_ = false;
  std::string buffer_;
};

// The body of one HTTP answer with a content-length or chunks, head removed.
std::string BodyOf(const std::string& response);
int StatusOf(const std::string& response);

}  // namespace switchyard::testing
