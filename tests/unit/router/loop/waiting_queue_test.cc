#include "router/loop/waiting_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace switchyard::router {
namespace {

using testing::ElementsAre;

class WaitingQueueTest : public testing::Test {
 protected:
  Sequence& Add(const std::string& fair_key, int priority = 0) {
    auto request = std::make_unique<Request>();
    request->spec.fair_key = fair_key;
    request->spec.priority = priority;
    request->choices.push_back(std::make_unique<Sequence>(*request, 0, ++arrivals_));
    Sequence& s = *request->choices[0];
    requests_.push_back(std::move(request));
    queue_.Insert(s);
    return s;
  }
  // Arrival numbers in the order of their turns, each of which takes `tokens`.
  std::vector<uint64_t> Order(int64_t tokens, size_t most = 100) {
    std::vector<uint64_t> order;
    queue_.Visit([&](Sequence& s) {
      if (order.size() == most) return int64_t{-1};
      order.push_back(s.arrival);
      return tokens;
    });
    return order;
  }

  uint64_t arrivals_ = 0;
  std::vector<std::unique_ptr<Request>> requests_;
  WaitingQueue queue_;
};

TEST_F(WaitingQueueTest, OneClientIsServedByPriorityThenArrival) {
  EXPECT_TRUE(queue_.empty());
  EXPECT_EQ(queue_.Front(), nullptr);
  Add(""), Add("", 1), Add(""), Add("", -1), Add("", 1);
  EXPECT_THAT(Order(10), ElementsAre(2, 5, 1, 3, 4));
  EXPECT_THAT(Order(10, 2), ElementsAre(2, 5));
  EXPECT_EQ(queue_.Front()->arrival, 2u);
}

TEST_F(WaitingQueueTest, ClientsTakeTurnsByWhatTheyGet) {
  for (int i = 0; i < 4; ++i) Add("flood");  // 1 to 4
  Add("b"), Add("c"), Add("b");              // 5, 6, 7
  EXPECT_THAT(Order(10), ElementsAre(1, 5, 6, 2, 7, 3, 4));
  queue_.Charge("b", 15);
  EXPECT_THAT(Order(10), ElementsAre(1, 6, 2, 5, 3, 7, 4));
}

TEST_F(WaitingQueueTest, WhatCountsIsPriorityBeforeShares) {
  queue_.Charge("a", 1000);
  Add("b"), Add("a", 1), Add("b", 1);
  EXPECT_THAT(Order(1), ElementsAre(3, 2, 1));
}

TEST_F(WaitingQueueTest, APauseSavesNoTurns) {
  Sequence& first = Add("busy");
  queue_.Charge("busy", 1000);
  queue_.Erase(first);
  queue_.NoteTurn("busy");
  Add("idle"), Add("idle"), Add("busy"), Add("busy");
  EXPECT_THAT(Order(10), ElementsAre(2, 4, 3, 5));  // equals, from now on
}

TEST_F(WaitingQueueTest, ErasedOnesHaveNoTurn) {
  Sequence &a = Add("a"), &b = Add("a", 1);
  Add("b");
  queue_.Erase(b);
  EXPECT_THAT(Order(1), ElementsAre(1, 3));
  queue_.Erase(a);
  EXPECT_THAT(Order(1), ElementsAre(3));
  queue_.Insert(a);
  EXPECT_THAT(Order(1), ElementsAre(1, 3));
  EXPECT_FALSE(queue_.empty());
}

}  // namespace
}  // namespace switchyard::router
