#include "gateway/api/http_parser.h"

#include <fmt/format.h>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cctype>

#include "services/base/check.h"

namespace switchyard::gateway {

namespace http = boost::beast::http;

struct HttpParser::Impl {
  http::request_parser<http::string_body> parser;
};

HttpParser::HttpParser(const HttpLimits& limits)
    : limits_(limits), impl_(std::make_unique<Impl>()) {
  impl_->parser.header_limit(static_cast<uint32_t>(limits.header_bytes));
  impl_->parser.body_limit(limits.body_bytes);
  impl_->parser.eager(true);
}

HttpParser::~HttpParser() = default;

size_t HttpParser::Feed(std::string_view data) {
  if (state_ == State::kDone || state_ == State::kFailed || data.empty()) return 0;
  boost::beast::error_code ec;
  const size_t used = impl_->parser.put(boost::asio::buffer(data.data(), data.size()), ec);
  if (ec && ec != http::error::need_more) {
    state_ = State::kFailed;
    if (ec == http::error::body_limit) {
      error_status_ = 413;
      error_ = fmt::format("the request body is larger than the {} bytes that this server takes",
                           limits_.body_bytes);
    } else if (ec == http::error::header_limit) {
      error_status_ = 431;
      error_ = HeadersTooLarge(limits_);
    } else {
      error_status_ = 400;
      error_ = "not a valid HTTP/1.1 request: " + ec.message();
    }
    return used;
  }
  if (impl_->parser.is_done()) {
    state_ = State::kDone;
  } else if (impl_->parser.is_header_done()) {
    state_ = State::kBody;
  }
  return used;
}

std::string HttpParser::HeadersTooLarge(const HttpLimits& limits) {
  return fmt::format("the request headers are larger than the {} bytes that this server takes",
                     limits.header_bytes);
}

size_t HttpParser::body_bytes() const { return impl_->parser.get().body().size(); }

bool HttpParser::ExpectsContinue() const {
  return state_ == State::kBody &&
         boost::beast::iequals(impl_->parser.get()[http::field::expect], "100-continue");
}

bool HttpParser::KeepAlive() const { return impl_->parser.get().keep_alive(); }
bool HttpParser::IsHttp10() const { return impl_->parser.get().version() < 11; }

namespace {

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// A malformed escape stays as it is: the path then matches no route.
std::string PercentDecode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      const int high = HexValue(text[i + 1]), low = HexValue(text[i + 2]);
      if (high >= 0 && low >= 0) {
        out.push_back(static_cast<char>(high * 16 + low));
        i += 2;
        continue;
      }
    }
    out.push_back(text[i]);
  }
  return out;
}

HttpRequest HeadOf(const http::request_header<>& message) {
  HttpRequest request;
  request.method = std::string(message.method_string());
  const auto target = message.target();
  const std::string_view view(target.data(), target.size());
  const size_t mark = view.find('?');
  request.path = PercentDecode(view.substr(0, mark));
  if (mark != std::string_view::npos) request.query = view.substr(mark + 1);
  for (const auto& field : message) {
    std::string name(field.name_string());
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    request.headers.emplace_back(std::move(name), std::string(field.value()));
  }
  return request;
}

}  // namespace

HttpRequest HttpParser::Head() const {
  SY_CHECK(state_ == State::kBody);
  return HeadOf(impl_->parser.get());
}

HttpRequest HttpParser::Take() {
  SY_CHECK(state_ == State::kDone);
  auto message = impl_->parser.release();
  HttpRequest request = HeadOf(message);
  request.body = std::move(message.body());
  return request;
}

}  // namespace switchyard::gateway
