// What a stream has had from its routers, so that another one can go on where one was lost, and
// nothing comes twice: of each attempt's tokens the newest attempt's count, and each (choice,
// index) once. What may be asked of the next router is the request and this; stop strings and text
// are the stream's own and do not begin anew.
//
// Not thread-safe: of one Generation.
#pragma once

#include <cstdint>
#include <vector>

#include "switchyard/internal/v1/router.pb.h"

namespace switchyard::gateway {

class Replay {
 public:
  // routing_width: experts that routing tells of a position, over all layers.
  Replay(int choices, int routing_width);

  enum class Verdict {
    kNews,
    kOver,   // of a choice that has ended
    kStale,  // of an earlier attempt, or had before
    kGap     // a token before it is missing: the router errs
  };
  // What a token is, without taking it.
  Verdict Judge(const internal::v1::Token& token) const;
  // Takes news.
  void Take(const internal::v1::Token& token);
  // No more is wanted of it.
  void End(int choice) { choices_[static_cast<size_t>(choice)].ended = true; }
  bool ended(int choice) const { return choices_[static_cast<size_t>(choice)].ended; }
  bool all_ended() const;
  bool has_tokens() const;

  void BeginAttempt();
  uint32_t attempt() const { return attempt_; }
  // Attempts since the last that brought a token.
  int fruitless() const { return fruitless_; }
  // What is told to the router of this attempt.
  void Fill(internal::v1::Submit* submit) const;

 private:
  struct Choice {
    std::vector<int32_t> tokens;
    bool ended = false;
    int routing_until = 0;
  };
  const int routing_width_;
  std::vector<Choice> choices_;
  int prompt_logprobs_until_ = 0;
  uint32_t attempt_ = 0;
  int fruitless_ = 0;
};

}  // namespace switchyard::gateway
