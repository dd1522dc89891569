#include "services/base/fifo.h"

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <random>

namespace switchyard {
namespace {

TEST(Fifo, IsADeque) {
  Fifo<std::unique_ptr<int>> fifo;
  std::deque<int> want;
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {
    switch (random() % 8) {
      case 0:
      case 1:
      case 2:
      case 3:
        fifo.push_back(std::make_unique<int>(i));
        want.push_back(i);
        break;
      case 4: {
        const auto odd = [&](int x) { return x % 5 == i % 5; };
        EXPECT_EQ(fifo.erase_if([&](const auto& x) { return odd(*x); }), std::erase_if(want, odd));
        break;
      }
      case 5:
        if (random() % 50 != 0) break;
        fifo.clear();
        want.clear();
        break;
      default:
        if (want.empty()) break;
        EXPECT_EQ(*fifo.front(), want.front());
        EXPECT_EQ(*fifo.pop_front(), want.front());
        want.pop_front();
    }
    ASSERT_EQ(fifo.size(), want.size());
    ASSERT_EQ(fifo.empty(), want.empty());
  }
}

}  // namespace
}  // namespace switchyard
